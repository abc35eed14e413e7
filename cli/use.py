"""`slipway use`: one of a workload's presets written into params.yaml, whose comments stay."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.settings import read_params, validate
from contracts.workload import ROOT, load, names

NULL, LONGEST = "tag:yaml.org,2002:null", 90
# What of the stage publish is a preset's to say; where a model goes, under what name and licence, is the user's.
LIMITS = ("least", "most")


def use(
    workload: Annotated[str, typer.Argument(help="The workload: its section is written.")],
    preset: Annotated[str, typer.Argument(help="The preset's name.")] = "default",
    params: Annotated[Path, typer.Option(help="The file to change.")] = Path("params.yaml"),
) -> None:
    """Write a preset into params.yaml: real data and sizes, ready to run.

    Each stage that the preset names becomes exactly what the preset says; a stage that it does not name stays as it is. Of publish
    it writes the limits that it names (least, most), and nothing else that is set: where a model goes is yours. Comments stay.
    Nothing is written unless every value is valid.
    """
    kind, chosen = load(workload).Settings, preset_file(workload, preset)
    before = read_params(params)
    wanted = combined(before.get(workload) or {}, read_params(chosen))
    validate(kind, wanted, where=workload)
    listed = list(before.get("workloads") or [])
    listed += [] if workload in listed else [workload]
    after = {**before, "workloads": listed, workload: wanted}
    if changes := list(differences(before, after)):
        write(params, merged(params, chosen.read_text(encoding="utf-8"), workload), expected=after)
        print("\n".join(f"  {change}" for change in changes))
    print(f"{params}: {workload} {'now uses' if changes else 'already used'} the preset {preset}")


def enlist(workload: str, params: Path = Path("params.yaml")) -> None:
    """Put a workload that exists among those that params.yaml runs, with its default section where it has none; say so.

    Without a params.yaml, or such a workload, nothing is done: whoever reads the pipeline says what is wrong.
    """
    if workload not in names() or not params.is_file():
        return
    before = read_params(params)
    listed = list(before.get("workloads") or [])
    if workload in listed:
        return
    if workload not in before:
        use(workload, "default", params)
        return
    write(params, merged(params, "", workload), expected={**before, "workloads": [*listed, workload]})
    print(f"{params}: workloads lists {workload} now, so that `dvc repro` runs it too")


def presets_of(workload: str) -> dict[str, Path]:
    """The presets of a workload, by name."""
    return {path.stem: path for path in sorted((ROOT / "workloads" / workload / "presets").glob("*.yaml"))}


def preset_file(workload: str, preset: str) -> Path:
    """The file of a preset.

    Raises:
        SlipwayError: when there is none; says which there are.
    """
    known = presets_of(workload)
    if preset in known:
        return known[preset]
    there_are = f"there are: {', '.join(known)}" if known else f"{workload} has none"
    others = "".join(
        f"\n  {name}: {', '.join(presets)}" for name in names() if name != workload and (presets := presets_of(name))
    )
    raise SlipwayError(
        f"{workload} has no preset {preset!r}; {there_are}" + (f"; other workloads:{others}" if others else "")
    )


def combined(section: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """A section with a preset in it."""
    own, theirs = section.get("publish"), preset.get("publish")
    both = {**section, **preset}
    if own and theirs is not None:
        both["publish"] = {**own, **{name: theirs[name] for name in written_to(own, theirs)}}
    return both


def written_to(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What of a preset's stage publish is written to the user's."""
    return [name for name in theirs if name in LIMITS or name not in own]


def merged(params: Path, chosen: str, workload: str) -> str:
    """The text of params.yaml with the preset's text in it, and the workload among those that run."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    text = params.read_text(encoding="utf-8")
    step, offset = indentation(text)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=step, sequence=offset + 2, offset=offset)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar(NULL, "null"))
    data, preset = yaml.load(text), yaml.load(chosen) or {}
    if not isinstance(data.get("workloads"), list):
        data.insert(0, "workloads", CommentedSeq())
        data["workloads"].fa.set_flow_style()
    if workload not in data["workloads"]:
        data["workloads"].append(workload)
    if not isinstance(data.get(workload), dict):
        data[workload] = CommentedMap()
    for stage, values in preset.items():
        if stage == "publish" and (own := data[workload].get(stage)):
            for name in written_to(own, values):
                overwrite(own, name, values[name], values, shift=step)
        else:
            overwrite(data[workload], stage, values, preset, shift=step)
    result = io.StringIO()
    yaml.dump(data, result)
    return result.getvalue()


def indentation(text: str) -> tuple[int, int]:
    """Spaces that a mapping and the dashes of a list are indented by in this text; 2 where it shows none."""
    steps = [len(spaces) for spaces in re.findall(r"^( +)[^\s#-]", text, flags=re.MULTILINE)]
    lists = [
        len(dash) - len(key)
        for key, dash in re.findall(r"^( *)[^\s#-][^\n]*:[ ]*(?:#[^\n]*)?\n( *)- ", text, flags=re.MULTILINE)
    ]
    return min(steps, default=2), max(lists[0] if lists else 2, 0)


def overwrite(section: Any, key: str, value: Any, preset: Any, *, shift: int) -> None:
    """Set a key to what the preset has, below it too. A comment stays where the same kind of value stays; otherwise the preset's
    comes, `shift` columns further right, as deep as the section is."""
    if isinstance(value, dict) and isinstance(section.get(key), dict) and is_block(value) and is_block(section[key]):
        for old in [name for name in section[key] if name not in value]:
            del section[key][old]
        for name, below in value.items():
            overwrite(section[key], name, below, value, shift=shift)
        return
    if key in section and section[key] == value:
        return
    theirs = end_comment(preset, key)
    if theirs:
        theirs.start_mark.column += shift
    if key not in section or is_block(section[key]) or is_block(value):
        section.ca.items.pop(key, None)
        if theirs:
            section.ca.items[key] = preset.ca.items[key]
    elif theirs and (own := end_comment(section, key)):
        own.start_mark.column = theirs.start_mark.column
    section[key] = value


def end_comment(mapping: Any, key: str) -> Any:
    """The token of the comment at the end of a key's line, if there is one."""
    return (mapping.ca.items.get(key) or [None] * 3)[2]


def is_block(value: Any) -> bool:
    """Whether a value is written over several lines."""
    return isinstance(value, dict | list) and not (value.fa.flow_style() or not value)  # pyright: ignore[reportAttributeAccessIssue]


def differences(before: Any, after: Any, path: str = "") -> Any:
    """What changes, a line each: the path, the old value, the new one."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key, ...), after.get(key, ...), f"{path}.{key}" if path else str(key))
    elif before is ... and isinstance(after, Mapping):
        yield from differences({}, after, path)
    elif before != after:
        old, new = (
            "(not set)" if value is ... else textwrap.shorten(str(value), LONGEST, placeholder=" ...")
            for value in (before, after)
        )
        yield f"{path}: {old} -> {new}"


def write(params: Path, text: str, *, expected: Mapping[str, Any]) -> None:
    """Put the new text in the file's place, if it says what is meant.

    Raises:
        SlipwayError: when comments and anchors of the file did not survive the change; it stays as it was.
    """
    place = params.resolve()
    newline = "\r\n" if b"\r\n" in place.read_bytes() else "\n"
    with replace_when_complete(place) as temporary:
        temporary.write_text(text, encoding="utf-8", newline=newline)
        if read_params(temporary) != expected:
            raise SlipwayError(
                f"{params} could not be changed without losing something in it: write the preset's values by hand"
            )
        temporary.chmod(place.stat().st_mode)
