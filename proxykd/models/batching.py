"""The tensors of a micro-batch: sequences packed one after the other, completions of one prompt behind it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxykd.losses.top_k import moved

LIKE = 0.8
"""Sequences are padded together for attention where the shortest has at least this share of the longest's tokens."""


@dataclass(frozen=True)
class Layout:
    """Where the sequences of T packed tokens lie, and what they are padded to where they must stand side by side.

    Sequences of like length form a group, [rows, width] right-padded. The P places are those of all groups, one group
    after the other. A prompt that several completions share has its tokens once, and a place in each of its sequences.
    """

    groups: tuple[tuple[int, int], ...]
    tokens_P: Tensor
    """The token at each place. Padding repeats token 0: no token before it sees it under causal attention."""
    places_T: Tensor
    """The place of each token; of a shared one, in the first of its sequences."""
    shared_A: Tensor
    """Tokens of shared prompts, once for each further sequence, and `again_A` their places there."""
    again_A: Tensor

    def to(self, device: torch.device) -> Layout:
        tensors = (self.tokens_P, self.places_T, self.shared_A, self.again_A)
        return Layout(self.groups, *(moved(tensor, device) for tensor in tensors))

    def side_by_side(self, values_P: Tensor) -> Iterator[Tensor]:
        """Values of all places, [P, ...], group by group: [rows, width, ...]."""
        for (rows, width), part in zip(
            self.groups, values_P.split([rows * width for rows, width in self.groups]), strict=True
        ):
            yield part.unflatten(0, (rows, width))


@dataclass(frozen=True)
class CompletionBatch:
    """T packed tokens of B sequences and where their completions lie (N completion tokens, sequence by sequence).

    The last token of a sequence is not an input: nothing is predicted from it.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    """Within its sequence."""
    layout: Layout
    positions_N: Tensor
    """The token that predicts each completion token: the label shift."""
    labels_N: Tensor
    rows_N: Tensor
    lengths_B: Tensor
    """Completion tokens of each sequence."""

    def to(self, device: torch.device) -> CompletionBatch:
        rest = (self.positions_N, self.labels_N, self.rows_N, self.lengths_B)
        return CompletionBatch(
            moved(self.input_ids_T, device),
            moved(self.position_ids_T, device),
            self.layout.to(device),
            *(moved(tensor, device) for tensor in rest),
        )


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> CompletionBatch:
    """Packs B sequences, a prompt and a completion each. An empty completion contributes no tokens.

    Raises:
        ValueError: a prompt is empty.
    """
    return collate_behind(prompts, [[completion] for completion in completions])


def collate_behind(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> CompletionBatch:
    """Packs each prompt once with all of its completions behind it, each of which sees the prompt and itself; its
    sequences come one after the other.

    Raises:
        ValueError: a prompt is empty.
    """
    if not all(map(len, prompts)):
        raise ValueError("a prompt without tokens: nothing predicts the first completion token")
    ids: list[int] = []
    places: list[int] = []
    predicting: list[int] = []
    labels: list[int] = []
    sequences: list[list[int]] = []
    for prompt, behind in zip(prompts, completions, strict=True):
        shared = range(len(ids), len(ids) + len(prompt))
        ids += prompt
        places += range(len(prompt))
        for completion in behind:
            own = range(len(ids), len(ids) + max(0, len(completion) - 1))
            ids += completion[:-1]
            places += range(len(prompt), len(prompt) + len(own))
            predicting += (shared[-1], *own) if len(completion) else ()
            labels += completion
            sequences.append([*shared, *own])
    lengths_B = torch.tensor([len(completion) for behind in completions for completion in behind])
    return CompletionBatch(
        input_ids_T=torch.tensor(ids),
        position_ids_T=torch.tensor(places),
        layout=_lay_out(sequences, len(ids)),
        positions_N=torch.tensor(predicting, dtype=torch.long),
        labels_N=torch.tensor(labels, dtype=torch.long),
        rows_N=torch.arange(len(lengths_B)).repeat_interleave(lengths_B),
        lengths_B=lengths_B,
    )


def _lay_out(sequences: Sequence[Sequence[int]], tokens: int) -> Layout:
    """Of sequences that are lists of packed tokens."""
    groups: list[list[int]] = []
    for number in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        if groups and len(sequences[number]) >= LIKE * len(sequences[groups[-1][0]]):
            groups[-1].append(number)
        else:
            groups.append([number])
    at: list[int] = []
    first = [-1] * tokens
    shared: list[int] = []
    again: list[int] = []
    for group in groups:
        width = len(sequences[group[0]])
        for number in group:
            sequence = sequences[number]
            for place, token in enumerate(sequence, start=len(at)):
                if first[token] < 0:
                    first[token] = place
                else:
                    shared.append(token)
                    again.append(place)
            at += sequence
            at += [0] * (width - len(sequence))
    shape = tuple((len(group), len(sequences[group[0]])) for group in groups)
    return Layout(shape, *(torch.tensor(values, dtype=torch.long) for values in (at, first, shared, again)))
