# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Reports on a run at any time: while it trains, after it was stopped, or when it is done.

python -m stepalign_jax.report --run runs/tiny-stepalign
"""

from pathlib import Path

from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json, read_jsonl
from stepalign_jax.config.cli import parse_arguments, run_command
from stepalign_jax.report.plots import plot_run
from stepalign_jax.report.run_page import write_run_report
from stepalign_jax.report.tables import summary_table
from stepalign_jax.runs.directory import RunDirectory


def main(argv: list[str]) -> None:
    """Writes report/report.html and run.png; prints how far the run is or what it came to."""
    arguments = parse_arguments(
        argv,
        description="Writes report/report.html, one file to open in a browser, and "
        "report/run.png: what a run has done and measured so far. It may be training.",
        example="python -m stepalign_jax.report --run runs/tiny-stepalign",
        options={"--run": {"required": True, "metavar": "DIR", "help": "the run's directory"}},
    )
    run = RunDirectory(Path(arguments.run))
    if not run.config_file.is_file():
        raise UserError(f"{run.path} is not a run: it has no {run.config_file.name}.")
    if run.summary_file.exists():
        print(summary_table(read_json(run.summary_file)))
    else:
        rows = read_jsonl(run.metrics_file) if run.metrics_file.exists() else []
        num_steps = read_json(run.config_file)["train"]["num_steps"]
        print(f"{len(rows)} of {num_steps} steps are done")
    print(f"written: {plot_run(run)}")
    print(f"report: {write_run_report(run)}")


if __name__ == "__main__":
    run_command(main)
