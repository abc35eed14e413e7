# The verbs of the Makefile for Windows: .\run.ps1 demo | test | check | environment | lock
param(
    [Parameter(Mandatory = $true)][ValidateSet("demo", "test", "check", "environment", "lock")][string]$Verb,
    [Parameter(ValueFromRemainingArguments = $true)][string[]]$Arguments = @()
)
$ErrorActionPreference = "Stop"
Set-Location $PSScriptRoot
$Programs = Join-Path $PSScriptRoot ".venv\Scripts"

function Invoke-Checked {
    param([string]$Program, [string[]]$Parameters = @())
    & $Program @Parameters
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}

function Find-Python {
    $check = "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
    $candidates = @(@("py", "-3.13"), @("py", "-3.12"), @("py", "-3.11"), @("python"), @("python3"))
    foreach ($candidate in $candidates) {
        if (-not (Get-Command $candidate[0] -ErrorAction SilentlyContinue)) { continue }
        $options = @($candidate | Select-Object -Skip 1)
        try { & $candidate[0] @options -c $check 2>$null } catch { continue }
        if ($LASTEXITCODE -eq 0) { return , $candidate }
    }
    Write-Error "No Python 3.11, 3.12 or 3.13 was found. Install one from python.org or with: winget install Python.Python.3.13"
}

$python = Find-Python
Invoke-Checked $python[0] (@($python | Select-Object -Skip 1) + @("cli\environment.py"))

switch ($Verb) {
    "demo" {
        git rev-parse --git-dir *> $null
        if ($LASTEXITCODE -ne 0) { Invoke-Checked "git" @("init", "--quiet") }
        if (-not (Test-Path ".dvc")) { Invoke-Checked "$Programs\dvc.exe" @("init", "--quiet") }
        Write-Host "demo: download, parse, plan, train, evaluate, export, quantize, report, publish; some minutes on two cores"
        Invoke-Checked "$Programs\slipway.exe" @("run", "segmentation")
    }
    "test" {
        $Workers = @("--numprocesses", "3", "--dist", "worksteal")
        Invoke-Checked "$Programs\python.exe" (@("-m", "pytest") + $Workers + $Arguments)
    }
    "check" {
        Invoke-Checked "$Programs\ruff.exe" @("check", ".")
        Invoke-Checked "$Programs\ruff.exe" @("format", "--check", ".")
        Invoke-Checked "$Programs\pyright.exe"
        Invoke-Checked "$Programs\lint-imports.exe"
        Invoke-Checked "$Programs\python.exe" (@("-m", "pytest", "-m", "not slow") + $Arguments)
    }
    "lock" {
        Invoke-Checked "$Programs\uv.exe" @(
            "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal", "--python-version", "3.11", "--generate-hashes",
            "--no-emit-index-url", "--no-emit-find-links", "--no-header", "--quiet", "--output-file", "requirements.lock"
        )
    }
}
