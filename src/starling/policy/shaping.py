"""From scores of reward models to the reward that a reply gets on its last token.

Source: Starling's trlx fork (clip the raw score to ±10, then divide by the running standard deviation of all clipped scores seen
so far, the present ones included; no mean subtraction) and what its authors name as essential but did not release: a shift of the
mean to a small positive value, against ever longer replies. Several models, combined conservatively: Coste et al. 2024
(arXiv 2310.02743; theirs takes the variance, here it is the standard deviation, in the scores' own unit). Merging of moments:
Chan, Golub and LeVeque 1979.

The steps, in this order, each undone by its setting:

    1  scale      recorded      (score − mean) / std of that reward model's validation answers, then the clip
                  running_std   the clip, then division by the running deviation
                  none          the clip alone
    2  combine    mean, minimum, or mean − k·std over the models (std with divisor M)
    3  shift      added
    4  cap        a reply without its end token gets at most `unfinished`
    5  penalties  for tokens beyond length_free and for repeated 4-grams; last, so that they count for capped replies too

Departures from the original: standardising by the recorded statistics is the default, since a running deviation makes the reward
of a reply depend on what was sampled before it; a reply that was cut off never looks finished (the original appended the end
token to every reply before it was scored, which feeds length).

Shapes: M reward models, B replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from starling.config import ShapingSection
from starling.errors import InputError, TrainingError

Floats = npt.NDArray[np.float64]

GRAM = 4
"""Tokens of the n-grams that repetition is counted in."""
LEAST_STD = 1e-6
"""A recorded deviation below this is that of a model which gives every answer the same score."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a stream of numbers.

    >>> Moments().merged([1.0, 3.0]).merged([5.0])
    Moments(count=3, mean=3.0, squares=8.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def merged(self, values: Sequence[float] | Floats) -> Moments:
        """With further numbers; the same, up to rounding, however the stream is cut into batches."""
        more_N = np.asarray(values, dtype=np.float64)
        if not more_N.size:
            return self
        count = self.count + more_N.size
        mean = float(more_N.mean())
        distance = mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + distance * more_N.size / count,
            squares=self.squares + float(((more_N - mean) ** 2).sum()) + distance**2 * self.count * more_N.size / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation with divisor n − 1; 1 while no two different numbers were seen, so that dividing changes nothing."""
        if self.count < 2 or self.squares <= 0.0:
            return 1.0
        return math.sqrt(self.squares / (self.count - 1))


@dataclass(frozen=True)
class Shaped:
    """Rewards and what was done to them."""

    reward_B: Floats
    metrics: dict[str, float]
    """reward, reward_std: of the shaped rewards. score, score_std: of the first model's raw scores; score/1 … : means of the
    further models'. Under shaping/: clipped (share of scores), capped (share of replies whose reward the cap lowered),
    length_penalty, repetition_penalty (means over replies), std (running deviation of the first model's scores, if it is the
    scale), disagreement (mean over replies of the models' std, if there are several). repetition: mean share of repeated 4-grams.
    """


class Shaping:
    """The settings with the running moments of each reward model.

    `shape` is to be called once per iteration with the replies of all processes: with a running deviation the reward depends on
    which scores are seen together.

    Args:
        settings: `policy.shaping`.
        statistics: per reward model its recorded {"mean", "std"}, the run's own model first; may be empty mappings unless
            the scale is "recorded".
        names: of the models, for messages.

    Raises:
        InputError: the scale is "recorded" and a model has no statistics, or gives every answer the same score.
    """

    def __init__(
        self, settings: ShapingSection, statistics: Sequence[Mapping[str, float]], names: Sequence[str] | None = None
    ) -> None:
        self.settings = settings
        self.moments = [Moments() for _ in statistics]
        self._mean_M1, self._std_M1 = np.zeros((len(statistics), 1)), np.ones((len(statistics), 1))
        if settings.scale != "recorded":
            return
        for i, found in enumerate(statistics):
            name = names[i] if names else f"reward model {i + 1} of {len(statistics)}"
            if "mean" not in found or "std" not in found:
                raise InputError(
                    "The reward model records no score statistics",
                    where=name,
                    cure='train it with `starling train-reward`, or set policy.shaping.scale to "running_std"',
                )
            if not (math.isfinite(found["mean"]) and math.isfinite(found["std"]) and found["std"] >= LEAST_STD):
                raise InputError(
                    f"The reward model's recorded scores have mean {found['mean']} and deviation {found['std']}: it tells no two "
                    "answers apart",
                    where=name,
                    cure="look at its training log, and train it again",
                )
            self._mean_M1[i], self._std_M1[i] = found["mean"], found["std"]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {"moments": [asdict(one) for one in self.moments]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            TrainingError: it is that of another number of reward models.
        """
        found = [Moments(**one) for one in state["moments"]]
        if len(found) != len(self.moments):
            raise TrainingError(
                f"The checkpoint holds the moments of {len(found)} reward models, and there are {len(self.moments)}",
                where="policy.shaping.models",
                cure="set it as it was, or delete the folder of checkpoints to start this training anew",
            )
        self.moments = found

    def shape(
        self, scores_MB: npt.ArrayLike, finished_B: npt.ArrayLike, lengths_B: npt.ArrayLike, replies: Sequence[Sequence[int]]
    ) -> Shaped:
        """Rewards of one iteration's replies; with scale "running_std" their scores enter the moments first.

        Args:
            scores_MB: raw scores, one row per reward model in the order of `statistics`.
            finished_B: True means the reply has its end token; told from token ids, never from text.
            lengths_B: tokens of each reply, end token included.
            replies: token ids of each reply.

        Raises:
            TrainingError: a score is not finite; no moment has changed.
            ValueError: numbers of models or replies that do not go together.
        """
        raw_MB = np.array(scores_MB, dtype=np.float64)
        finished_B, lengths_B = np.asarray(finished_B, dtype=bool), np.asarray(lengths_B, dtype=np.float64)
        self._check(raw_MB, finished_B, lengths_B, replies)
        s = self.settings
        scaled_MB, metrics = self._scaled(raw_MB)
        reward_B = combined(scaled_MB, s.combine, s.std_weight) + s.shift
        low_B = ~finished_B & (reward_B > s.unfinished)
        reward_B = np.where(low_B, s.unfinished, reward_B)
        repeated_B = np.array([repeated_share(ids) for ids in replies])
        length_penalty_B = s.length_penalty * np.maximum(0.0, lengths_B - s.length_free)
        repetition_penalty_B = s.repetition_penalty * repeated_B
        reward_B = reward_B - length_penalty_B - repetition_penalty_B
        return Shaped(
            reward_B=reward_B,
            metrics={
                "reward": float(reward_B.mean()),
                "reward_std": float(reward_B.std()),
                "score": float(raw_MB[0].mean()),
                "score_std": float(raw_MB[0].std()),
                **{f"score/{i}": float(raw_MB[i].mean()) for i in range(1, len(raw_MB))},
                "repetition": float(repeated_B.mean()),
                "shaping/capped": float(low_B.mean()),
                "shaping/length_penalty": float(length_penalty_B.mean()),
                "shaping/repetition_penalty": float(repetition_penalty_B.mean()),
                **metrics,
            },
        )

    def _check(self, raw_MB: Floats, finished_B: Any, lengths_B: Any, replies: Sequence[Sequence[int]]) -> None:
        wanted = (len(self.moments), len(replies))
        if raw_MB.shape != wanted or not replies or finished_B.shape != wanted[1:] or lengths_B.shape != wanted[1:]:
            raise ValueError(
                f"scores {raw_MB.shape}, flags {finished_B.shape}, lengths {lengths_B.shape} for {wanted} models and replies"
            )
        if not np.isfinite(raw_MB).all():
            model, reply = np.argwhere(~np.isfinite(raw_MB))[0].tolist()
            raise TrainingError(
                f"A reward model gives a reply the score {raw_MB[model, reply]}",
                where=f"reward model {model + 1} of {len(raw_MB)}, reply {reply + 1} of {len(replies)}",
                cure="score that model's validation answers with `starling score`; it has to give finite numbers",
            )

    def _scaled(self, raw_MB: Floats) -> tuple[Floats, dict[str, float]]:
        """Scores after scale and clip, and metrics of it."""
        clip, scale = self.settings.clip, self.settings.scale
        before_MB = (raw_MB - self._mean_M1) / self._std_M1 if scale == "recorded" else raw_MB
        scaled_MB = before_MB.clip(-clip, clip)
        metrics = {"shaping/clipped": float((np.abs(before_MB) > clip).mean())}
        if scale == "running_std":
            self.moments = [one.merged(row) for one, row in zip(self.moments, scaled_MB, strict=True)]
            scaled_MB = scaled_MB / np.array([[one.std] for one in self.moments])
            metrics["shaping/std"] = self.moments[0].std
        if len(raw_MB) > 1:
            metrics["shaping/disagreement"] = float(scaled_MB.std(axis=0).mean())
        return scaled_MB, metrics


def combined(scores_MB: Floats, how: str, std_weight: float) -> Floats:
    """One score per reply from those of several models.

    >>> combined(np.array([[1.0, 4.0], [3.0, 4.0]]), "mean_minus_std", 0.5).tolist()
    [1.5, 4.0]
    """
    if how == "minimum":
        return np.asarray(scores_MB.min(axis=0))
    mean_B: Floats = scores_MB.mean(axis=0)
    return mean_B - std_weight * scores_MB.std(axis=0) if how == "mean_minus_std" else mean_B


def repeated_share(ids: Sequence[int], n: int = GRAM) -> float:
    """Share of a reply's n-grams of tokens that came before in it; 0 for one that is too short to have two.

    >>> repeated_share([7, 7, 7, 7, 7, 7])
    0.6666666666666666
    """
    grams = len(ids) - n + 1
    if grams < 2:
        return 0.0
    return (grams - len({tuple(ids[i : i + n]) for i in range(grams)})) / grams
