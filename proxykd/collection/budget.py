"""What collecting has cost, and a budget that cannot be exceeded: every request is reserved at its worst case first."""

from __future__ import annotations

from dataclasses import dataclass

from proxykd.collection.requests import Request
from proxykd.config import BudgetConfig, PriceConfig
from proxykd.errors import TeacherError


class BudgetExhausted(TeacherError):
    """What is left of the budget does not bear one more request at its worst."""


PER = 1_000_000
MESSAGE_TOKENS = 32
"""More than any chat format puts around a message."""


@dataclass
class Usage:
    """Tokens, in and out."""

    prompt: int = 0
    completion: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.prompt - other.prompt, self.completion - other.completion)

    def cost(self, prices: PriceConfig) -> float:
        """Returns what the tokens cost, in the currency of `prices`."""
        return (self.prompt * prices.prompt + self.completion * prices.completion) / PER


def worst_case(request: Request, max_tokens: int) -> Usage:
    """Returns the most that a request can use: no tokenizer makes more tokens of a text than it has bytes, and no
    completion is longer than its limit."""
    text = sum(len(message["content"].encode(errors="surrogatepass")) + MESSAGE_TOKENS for message in request.messages)
    return Usage(text + MESSAGE_TOKENS, max_tokens)


class Ledger:
    """The usage so far, what is reserved for requests in flight, and what those without an answer may have cost."""

    def __init__(self, budget: BudgetConfig, prices: PriceConfig):
        self._budget = budget
        self._prices = prices
        self.usage = Usage()
        self.unanswered = Usage()
        self._reserved = Usage()

    def fits(self, worst: Usage) -> bool:
        """Whether the budget bears one more request, should everything in flight turn out as dear as it can."""
        total = self.usage + self.unanswered + self._reserved + worst
        within_tokens = self._budget.tokens is None or total.tokens <= self._budget.tokens
        return within_tokens and (self._budget.cost is None or total.cost(self._prices) <= self._budget.cost)

    def reserve(self, worst: Usage) -> None:
        self._reserved += worst

    def take_back(self, worst: Usage) -> None:
        """A request of an earlier process whose answer can still be had."""
        self.unanswered -= worst
        self._reserved += worst

    def settle(self, worst: Usage, used: Usage) -> None:
        """A request came back; `used` is nothing where the provider refused it."""
        self._reserved -= worst
        self.usage += used

    def lose(self, worst: Usage) -> None:
        """A request was sent and no answer tells what it cost: the worst is assumed, so that the budget holds."""
        self._reserved -= worst
        self.unanswered += worst

    def exhausted(self) -> str:
        """What to tell when not even one more request fits."""
        budget = [f"{self._budget.tokens} tokens"] if self._budget.tokens is not None else []
        if self._budget.cost is not None:
            budget.append(f"{self._budget.cost:g} {self._prices.currency}")
        lost = f", and at most {self.unanswered.tokens} tokens more without an answer" if self.unanswered.tokens else ""
        return (
            f"the budget of {' and '.join(budget)} does not bear one more request at its worst: spent are "
            f"{self.usage.tokens} tokens, {self.cost:.4f} {self._prices.currency}{lost}; raise collection.budget"
        )

    @property
    def cost(self) -> float:
        return self.usage.cost(self._prices)

    @property
    def unanswered_cost(self) -> float:
        return self.unanswered.cost(self._prices)
