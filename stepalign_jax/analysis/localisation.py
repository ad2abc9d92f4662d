# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the advantage falls: how much on the first error, and how much where nothing is wrong.

All of it is NumPy on `ScoredRollouts`, in float64. With the first error in reasoning step 1:

    token            S1  a   b   S2  c   d   Answer 9  <end>
    reasoning_step   0   0   0   1   1   1   -1    -1  -1
    part             before      first       after

Where the first wrong reasoning step is one that is missing, no token is in it: such rollouts
have a right prefix, but no shares before, in and after.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepalign_jax.analysis.copying import Copied, copied
from stepalign_jax.analysis.ranks import auroc, clustered_interval
from stepalign_jax.analysis.scored import NO_ERROR, UNKNOWN, ScoredRollouts

NOWHERE, BEFORE, FIRST, AFTER = -1, 0, 1, 2

BLAMED = -math.log(2.0)  # the teacher finds such a token at most half as likely as the solver

# What is measured of a context; docs/analysis.md says how each is read.
MEASURES = {
    "abs_before": "share of |A| before the first wrong reasoning step",
    "abs_first": "share of |A| in it",
    "abs_after": "share of |A| after it",
    "auroc": "AUROC of the negated step mean of A for 'this reasoning step is wrong'",
    "false_blame_correct": "negative share of |A| on right rollouts",
    "false_blame_prefix": "negative share of |A| on right prefixes of wrong rollouts",
    "blamed_tokens_correct": "share of tokens with A < -log 2 on right rollouts",
    "blamed_tokens_prefix": "share of tokens with A < -log 2 on right prefixes",
    "abs_on_markup": "share of |A| on markup",
    "kl_on_markup": "share of KL(teacher||solver) on markup",
    "copied_head": "share of the rollout's words that the context begins with",
    "copied": "share of the rollout's words that the context repeats in order",
}


def localisation(
    scored: ScoredRollouts, *, num_resamples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Returns all numbers as JSON: MEASURES by context, and what even spread would give.

        {"names": [the contexts in their order],
         "counts": {"rollouts", "problems", "tokens", "right", "wrong", "unknown"},
         "tokens": {"before", "first", "after", "markup"},     shares of tokens
         "contexts": {name: {"usable": int, measure: interval or None}}}

    An interval is {"mean", "low", "high"} over problems, which are drawn with all their
    rollouts; None where there is nothing to measure; its ends are None where too few of the
    resamples have a value. A share is a ratio of two sums over all tokens that count.

    Args:
      scored: the scores.
      num_resamples: of the bootstrap.
      confidence: in (0, 1).
      seed: of the resampling.
    """
    problems = [row["problem"] for row in scored.rows]
    how = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    contexts = {}
    for index, name in enumerate(scored.contexts):
        found: dict[str, Any] = {"usable": int(scored.usable[index].sum())}
        for measure, (parts, wholes) in _ratios(scored, index).items():
            found[measure] = _ratio(parts, wholes, problems, how)
        found["auroc"] = _auroc(scored, index, problems, how)
        contexts[name] = {key: found[key] for key in ("usable", *MEASURES)}
    return {
        "names": list(scored.contexts),
        "counts": _counts(scored),
        "tokens": _token_shares(scored),
        "contexts": contexts,
    }


def token_parts(scored: ScoredRollouts) -> np.ndarray:
    """[N] int: BEFORE, FIRST or AFTER; NOWHERE in rollouts without a known error."""
    parts = np.full(len(scored.tokens), NOWHERE)
    for rollout in np.flatnonzero(scored.first_error >= 0).tolist():
        steps, first = scored.reasoning_step[scored.of(rollout)], scored.first_error[rollout]
        behind = np.flatnonzero(steps >= first)
        inside = np.flatnonzero(steps >= 0)
        # A missing reasoning step begins where the last one ends.
        start = behind[0] if behind.size else inside[-1] + 1 if inside.size else 0
        own = np.where(np.arange(len(steps)) < start, BEFORE, AFTER)
        own[steps == first] = FIRST
        parts[scored.of(rollout)] = own
    return parts


def right_rollouts(scored: ScoredRollouts) -> np.ndarray:
    """[R] bool: the answer is right, and no reasoning step is known to be wrong."""
    return scored.correct & (scored.first_error < 0)


def step_means(scored: ScoredRollouts, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means of [N] values over each reasoning step that has a token.

    Returns:
      The rollout, the reasoning step and the mean of each, [steps].
    """
    inside = scored.reasoning_step >= 0
    rollout, step = scored.rollout_of_token()[inside], scored.reasoning_step[inside]
    pairs, places = np.unique(np.stack([rollout, step]), axis=1, return_inverse=True)
    places = places.reshape(-1)
    sums = np.bincount(places, weights=np.asarray(values, np.float64)[inside])
    return pairs[0], pairs[1], sums / np.bincount(places)


def judged_steps(scored: ScoredRollouts) -> tuple[np.ndarray, ...]:
    """Which reasoning steps are known to be right, or wrong.

    Those before the first error are right, it is wrong, and nobody says of those behind it: a
    reasoning step that is right by itself may go on from a wrong result.

    Returns:
      Whether each is known and whether it is wrong, both [steps] as `step_means` has them.
    """
    rollout, step, _ = step_means(scored, np.zeros(len(scored.tokens)))
    first = scored.first_error[rollout]
    known = (first != UNKNOWN) & ((first == NO_ERROR) | (step <= first))
    return known, known & (step == first)


def _ratios(
    scored: ScoredRollouts, context: int
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Of each share its two sums by rollout, [R]; 0 and 0 where a rollout does not count."""
    rollout, usable = scored.rollout_of_token(), scored.usable[context]
    advantage = scored.advantage[context].astype(np.float64)
    size, blame, blamed = np.abs(advantage), np.maximum(-advantage, 0), advantage < BLAMED
    kl, parts = np.abs(scored.kl[context].astype(np.float64)), token_parts(scored)
    located = np.zeros(len(scored.rows), bool)
    located[rollout[parts == FIRST]] = True
    right, prefix = right_rollouts(scored)[rollout], parts == BEFORE
    tokens = usable[rollout]

    def share(of: np.ndarray, part: np.ndarray, whole: np.ndarray) -> tuple[Any, Any]:
        sums = (np.where(where & whole & tokens, of, 0.0) for where in (part, True))
        part_of, whole_of = (np.bincount(rollout, s, len(scored.rows)) for s in sums)
        return part_of, whole_of

    def blame_share(whole: np.ndarray) -> tuple[Any, Any]:
        part, everywhere = share(blame, whole, whole)[0], share(size, whole, whole)[1]
        return part, everywhere

    everything, one = np.ones(len(rollout), bool), np.ones(len(rollout))
    found = {
        "abs_before": share(size, parts == BEFORE, located[rollout]),
        "abs_first": share(size, parts == FIRST, located[rollout]),
        "abs_after": share(size, parts == AFTER, located[rollout]),
        "false_blame_correct": blame_share(right),
        "false_blame_prefix": blame_share(prefix),
        "blamed_tokens_correct": share(one, blamed, right),
        "blamed_tokens_prefix": share(one, blamed, prefix),
        "abs_on_markup": share(size, scored.markup, everything),
        "kl_on_markup": share(kl, scored.markup, everything),
    }
    copies = [
        copied(row["rollout"], row["contexts"][context]) if is_usable else None
        for row, is_usable in zip(scored.rows, usable, strict=True)
    ]
    counts = np.array([copy is not None for copy in copies], np.float64)
    shares = np.array([copy or Copied(0.0, 0.0) for copy in copies]).reshape(-1, 2)
    return found | {"copied_head": (shares[:, 0], counts), "copied": (shares[:, 1], counts)}


def _ratio(
    parts: np.ndarray, wholes: np.ndarray, problems: list[str], how: Mapping[str, Any]
) -> dict[str, float | None] | None:
    if not wholes.sum() > 0:
        return None
    names, places = np.unique(problems, return_inverse=True)
    part, whole = (np.bincount(places, sums, len(names)) for sums in (parts, wholes))

    def ratio(rows: np.ndarray) -> float:
        total = whole[rows].sum()
        return float(part[rows].sum() / total) if total > 0 else math.nan

    return _as_json(clustered_interval(ratio, np.arange(len(names)), **how))


def _auroc(
    scored: ScoredRollouts, context: int, problems: list[str], how: Mapping[str, Any]
) -> dict[str, float | None] | None:
    rollout, _, means = step_means(scored, scored.advantage[context])
    known, wrong = judged_steps(scored)
    known &= scored.usable[context][rollout]
    means, wrong = -means[known], wrong[known]
    if not (wrong.any() and not wrong.all()):
        return None
    clusters = np.array(problems)[rollout[known]]
    found = clustered_interval(lambda rows: auroc(means[rows], wrong[rows]), clusters, **how)
    return _as_json(found)


def _as_json(interval: Any) -> dict[str, float | None]:
    return {
        key: None if math.isnan(value) else value for key, value in interval.as_dict().items()
    }


def _counts(scored: ScoredRollouts) -> dict[str, int]:
    return {
        "rollouts": len(scored.rows),
        "problems": len({row["problem"] for row in scored.rows}),
        "tokens": len(scored.tokens),
        "right": int(right_rollouts(scored).sum()),
        "wrong": int((scored.first_error >= 0).sum()),
        "unknown": int((scored.first_error == UNKNOWN).sum()),
    }


def _token_shares(scored: ScoredRollouts) -> dict[str, float | None]:
    """What the shares of |A| were, did all tokens have the same."""
    parts, rollout = token_parts(scored), scored.rollout_of_token()
    located = np.isin(rollout, rollout[parts == FIRST])
    names = {"before": BEFORE, "first": FIRST, "after": AFTER}
    shares = {
        name: float((parts[located] == part).mean()) if located.any() else None
        for name, part in names.items()
    }
    return {**shares, "markup": float(scored.markup.mean())}
