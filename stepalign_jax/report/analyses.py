# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""The part of a run's page on its analyses: where the advantage falls."""

from pathlib import Path
from typing import Any

from stepalign_jax.analysis.results import RESULT_FILE
from stepalign_jax.analysis.scored import ScoredRollouts
from stepalign_jax.base.errors import UserError
from stepalign_jax.base.files import read_json_object
from stepalign_jax.report.analysis_figures import analysis_plates, examples
from stepalign_jax.report.figures import Drawn
from stepalign_jax.report.html import Html, joined, tag
from stepalign_jax.report.localisation import NOTE, localisation_rows
from stepalign_jax.report.sections import figures_of, table
from stepalign_jax.report.svg import to_svg
from stepalign_jax.runs.directory import RunDirectory

_TITLES = {
    "localisation": "Where the advantage falls, by context",
    "trace": "Advantage of each token of one rollout, contexts stacked",
    "text": "The same rollout, its tokens coloured by advantage",
}


def analyses_of(run: RunDirectory) -> Html | None:
    """Returns the newest analysis with its figures, and the tables of the others to open."""
    found = sorted(run.path.glob(f"analysis/*/{RESULT_FILE}"))
    if not found:
        return None
    *others, newest = [_Analysis(path.parent) for path in found]
    return joined(
        newest.words(),
        figures_of(newest.drawn(), broad=True),
        *newest.tables(),
        tag("p", NOTE, class_="note"),
        *(tag("details", tag("summary", a.name), a.words(), *a.tables()) for a in others),
    )


class _Analysis:
    """One directory of `analysis/`."""

    def __init__(self, directory: Path):
        self.name = directory.name
        self._directory = directory
        self._found: dict[str, Any] = read_json_object(directory / RESULT_FILE)

    def words(self) -> Html:
        counts, found = self._found["counts"], self._found
        return tag(
            "p",
            f"{self.name}: {counts['rollouts']:,} {found['source']} were scored by "
            f"{found['of']}; {counts['right']:,} are right, {counts['wrong']:,} have a wrong "
            f"reasoning step, and of {counts['unknown']:,} it is unknown.",
        )

    def tables(self) -> list[Html]:
        tables = localisation_rows(self._found)
        return [table(rows[0], rows[1:], f"{rows[0][0]}, {self.name}") for rows in tables]

    def drawn(self) -> list[Drawn]:
        """Its figures; none where its scores cannot be read, which `rollouts.py` says."""
        try:
            scored = ScoredRollouts.load(self._directory)
        except UserError:
            return []
        drawn = []
        for plate in analysis_plates(scored, self._found, examples(scored)):
            name, words = f"analysis-{plate.name}", plate.alternative
            title = _TITLES[plate.name.partition("_")[0]]
            svg = to_svg(plate.figure, name=name, alternative=words)
            drawn.append(Drawn(name, title, words, svg))
        return drawn
