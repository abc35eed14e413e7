"""A model as a web service: a picture in, what `slipway predict` says of it out, and a page to look at it. No torch."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import mimetypes
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from contracts.errors import SlipwayError
from contracts.files import finite
from contracts.raw import RawInput
from contracts.settings import Settings
from contracts.workload import Prediction, Workload
from serving.about import about
from serving.drawing import drawn
from serving.runtime import Runtime
from serving.uploads import BARE, FORM, Limits, check_picture, received

PAGE = Path(__file__).with_name("page.html")
# Requests that are answered or wait for it; each holds its upload in memory.
MOST_AT_ONCE = 8
BODY = {
    "required": True,
    "content": {
        BARE[0]: {"schema": {"type": "string", "format": "binary"}},
        FORM: {"schema": {"type": "object", "properties": {"picture": {"type": "string", "format": "binary"}}}},
    },
}


@dataclass(frozen=True)
class Model:
    """An opened model with all that a prediction needs; it is opened once."""

    workload: Workload
    settings: Settings
    run: Runtime

    def predict(self, raw: RawInput) -> Prediction:
        """The result for one raw input."""
        [result] = self.workload.predict(self.run, [raw], self.settings, self.run.artifact.facts)
        return result

    def warm_up(self) -> None:
        """Predict once from nothing to see, so that the first client neither waits for imports nor finds a broken model.

        Raises:
            SlipwayError: when the model cannot predict.
        """
        file = BytesIO()
        Image.new("RGB", (64, 48)).save(file, "PNG")
        if error := self.predict(RawInput("warm-up", file.getvalue())).error:
            raise SlipwayError(f"{self.run.artifact.folder} cannot predict from a picture: {error}")


def make_app(model: Model, *, limits: Limits, examples: Sequence[RawInput] = (), hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The service. `examples` are offered on the page; `hosts` are the names it may be called by, "*" is any."""
    app = FastAPI(title="Slipway", docs_url=None, redoc_url=None)  # both pages would load scripts from elsewhere
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    told, page = description(model, limits, examples), PAGE.read_text(encoding="utf-8")
    slots, worker = asyncio.Semaphore(MOST_AT_ONCE), ThreadPoolExecutor(1)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy(page)})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/model")
    async def show_model() -> dict[str, Any]:
        return told

    @app.get("/examples/{number}", response_class=Response)
    async def example(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there is no example {number}; there are {len(examples)}")
        kind = mimetypes.guess_type(examples[number].name)[0]
        return Response(examples[number].read(), media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    @app.post("/predict", openapi_extra={"requestBody": BODY})
    async def predict(request: Request, name: str = "picture") -> Response:
        if slots.locked():
            raise HTTPException(503, f"{MOST_AT_ONCE} pictures are waiting already: try again", {"Retry-After": "1"})
        async with slots:
            try:
                raw = await received(request, limits, name=name)
            except ClientDisconnect:
                return Response(status_code=400)  # which nobody hears
            kind = request.headers.get("accept", "")
            return await asyncio.get_running_loop().run_in_executor(worker, answer, model, raw, limits, kind)

    @app.exception_handler(SlipwayError)
    async def refuse(request: Request, error: SlipwayError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    return app


def answer(model: Model, raw: RawInput, limits: Limits, accepted: str) -> Response:
    """The result as JSON, as predictions.json has it; as a drawn picture for who `accepted` says wants one (image/...).

    Raises:
        HTTPException: 413 or 422 when the picture cannot be used, and why.
    """
    check_picture(raw, model.workload.raw.suffixes, limits.pixels)
    start = time.perf_counter()
    result = model.predict(raw)
    if result.error:
        raise HTTPException(422, result.error)
    headers = {"Server-Timing": f"predict;dur={1000 * (time.perf_counter() - start):.1f}"}
    if accepted.startswith("image/"):
        suffix = ".png" if accepted.startswith("image/png") else ".jpg"
        return Response(drawn(result, suffix), media_type=mimetypes.types_map[suffix], headers=headers)
    return Response(json.dumps(finite(result.json()), ensure_ascii=False), media_type="application/json", headers=headers)


def description(model: Model, limits: Limits, examples: Sequence[RawInput]) -> dict[str, Any]:
    """What is served and how: what its folder tells, where it runs, what is refused, the names of the examples."""
    run = model.run
    return {
        **about(run.artifact),
        "providers": sorted(set(run.providers.values())),
        "threads": run.threads,
        "suffixes": sorted(model.workload.raw.suffixes),
        "limits": {"bytes": limits.bytes, "pixels": limits.pixels},
        "examples": [raw.name for raw in examples],
    }


def policy(page: str) -> str:
    """A Content-Security-Policy under which the page's own script and style run, and nothing else is run or fetched."""
    own = {}
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    return (
        f"default-src 'none'; script-src {own['script']}; style-src {own['style']}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
