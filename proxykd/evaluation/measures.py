"""What is measured of a model, as results and reports hold it. Nats, and tokens of completions."""

from __future__ import annotations

from proxykd.losses.trust import Trust
from proxykd.runs.json_model import JsonModel


class Fidelity(JsonModel):
    """How closely a model follows the teacher on a slice (docs/design.md, report.json)."""

    held_out_nll: float
    """Mean over all tokens."""
    stderr: float | None
    """Of it, with prompts as clusters; None where a single prompt says nothing about others."""
    top1_agreement: float
    sequence_agreement: float
    """The share of completions that greedy decoding writes just as the teacher did."""
    records: int
    prompts: int
    tokens: int
    nll_a_byte: float | None = None
    """The same NLL over the bytes that the tokens stand for: what models of several tokenizers are compared by. On the
    test slice alone, where the tokens' bytes are known."""


class MeanKl(JsonModel):
    """A mean a token of KL(teacher || model), over so many tokens."""

    kl: float
    stderr: float | None
    tokens: int


class MassShares(JsonModel):
    """For each k, the share of tokens whose k most likely tokens hold more than 0.95 of the mass (Figure 5)."""

    k: list[int]
    share: list[float]


class ValidationChange(JsonModel):
    """Of the validation NLL a token from one adapter to the next, compared record by record."""

    nll: float
    stderr: float | None
    prompts: int


class TaskChange(JsonModel):
    """Of a task's score from one adapter to the next, question by question."""

    before: float
    after: float
    """Shares of right answers."""
    won: int
    """Questions that are right now and were not before."""
    lost: int
    """The other way round."""
    questions: int


class Difference(JsonModel):
    """Of two models on the test slice, nats a token, compared record by record; below 0 where the first is closer."""

    nll: float
    nll_stderr: float | None
    true_kl: float | None
    """Where the teacher is local."""
    true_kl_stderr: float | None
    prompts: int


class Histogram(JsonModel):
    """How many `counts` of the weights lie in each of the bars between `edges`."""

    edges: list[float]
    counts: list[int]


class LabelSizes(JsonModel):
    method: str = "top_k"
    """Of `score.method`."""
    k: int
    tokens: int
    bytes_per_token: float
    mass_at_k: dict[str, float]
    """The mean mass of the 1, 5 and 10 most likely tokens; draws do not tell."""
    text_probability: float
    """The proxy's probability of the text's own tokens, their geometric mean: near 1, labels say what the text says."""


class TrustStatistics(JsonModel):
    adapter: str
    """Whose labels they are: an adapter's directory, or `base`."""
    reduction: str
    mu: float
    gamma: float
    """Mean and deviation of the records' scores, in nats (losses/trust.py)."""
    histogram: Histogram
    """Of the trust weights."""

    @property
    def trust(self) -> Trust:
        """The mean and deviation (mu, gamma) by which every record is judged."""
        return Trust(self.adapter, self.mu, self.gamma, self.reduction)


class LabelStatistics(LabelSizes, TrustStatistics):
    """Of all soft labels of a run."""
