"""The tensors of a micro-batch: sequences packed one after the other, completions of one prompt behind it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from proxykd.losses.top_k import moved

LIKE = 0.8
"""Sequences are padded together for attention where the shortest has at least this share of the longest's tokens."""


@dataclass(frozen=True)
class Places:
    """P places for T packed tokens, each of which has one or more."""

    tokens_P: Tensor
    """The token at each place. Padding repeats token 0: no token before it sees it under causal attention."""
    places_T: Tensor
    """The first place of each token."""
    shared_A: Tensor
    """Tokens of shared prompts, once for each further sequence, and `again_A` their places there."""
    again_A: Tensor

    def to(self, device: torch.device) -> Places:
        tensors = (self.tokens_P, self.places_T, self.shared_A, self.again_A)
        return Places(*(moved(tensor, device) for tensor in tensors))


@dataclass(frozen=True)
class Stretches:
    """Sequences one behind the other, for kernels that take them so: S stretches of queries, in the tokens' own order,
    and of keys, whose last tokens are those of the queries. The first sequence behind a prompt is one of both; of a
    further one, its own tokens are the queries, and prompt and own tokens the keys."""

    keys: Places | None
    """Of keys and values; None where they are the tokens as they come."""
    query_ends: Tensor
    """[S + 1], int32, from 0 on; `key_ends` alike."""
    key_ends: Tensor
    longest: tuple[int, int]
    """Of the stretches of queries, and of keys."""

    def to(self, device: torch.device) -> Stretches:
        keys = self.keys and self.keys.to(device)
        return Stretches(keys, moved(self.query_ends, device), moved(self.key_ends, device), self.longest)


@dataclass(frozen=True)
class Layout:
    """Where the sequences of T packed tokens lie, and what they are padded to where they must stand side by side.

    Sequences of like length form a group, [rows, width] right-padded. The P places are those of all groups, one group
    after the other. A prompt that several completions share has its tokens once, and a place in each of its sequences.
    """

    groups: tuple[tuple[int, int], ...]
    padded: Places
    stretches: Stretches

    def to(self, device: torch.device) -> Layout:
        return Layout(self.groups, self.padded.to(device), self.stretches.to(device))

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
    widths = [len(sequences[group[0]]) for group in groups]
    rows = [(sequences[number], width) for group, width in zip(groups, widths, strict=True) for number in group]
    shape = tuple((len(group), width) for group, width in zip(groups, widths, strict=True))
    return Layout(shape, _places(rows, tokens), _stretches(sequences, tokens))


def _places(rows: Sequence[tuple[Sequence[int], int]], tokens: int) -> Places:
    """Of sequences, each with the width to which it is padded."""
    at: list[int] = []
    filled: list[int] = []
    for sequence, width in rows:
        filled += range(len(at), len(at) + len(sequence))
        at += sequence
        at += [0] * (width - len(sequence))
    tokens_P, filled_P = torch.tensor(at, dtype=torch.long), torch.tensor(filled, dtype=torch.long)
    places_T = torch.full((tokens,), len(at)).scatter_reduce_(0, tokens_P[filled_P], filled_P, "amin")
    again_A = filled_P[places_T[tokens_P[filled_P]] != filled_P]
    return Places(tokens_P, places_T, tokens_P[again_A], again_A)


def _stretches(sequences: Sequence[Sequence[int]], tokens: int) -> Stretches:
    """A sequence's own tokens are the last of it, and come behind all tokens of those before it."""
    queries, keys = [0], [0]
    rows = []
    for sequence in sequences:
        if own := max(0, sequence[-1] + 1 - queries[-1]):
            queries.append(queries[-1] + own)
            keys.append(keys[-1] + len(sequence))
            rows.append((sequence, len(sequence)))
    query_ends, key_ends = (torch.tensor(values, dtype=torch.int32) for values in (queries, keys))
    longest = _longest(queries), _longest(keys)
    return Stretches(_places(rows, tokens) if keys[-1] > tokens else None, query_ends, key_ends, longest)


def _longest(ends: Sequence[int]) -> int:
    return max((end - begin for begin, end in pairwise(ends)), default=0)
