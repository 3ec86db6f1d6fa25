"""The true KL to a student of another tokenizer than the teacher's, where the two can be compared: between the
places at which both have a boundary.

The teacher's likeliest tokens, with their images in the student's vocabulary, stand where labels stand in training
(losses/cross_tokenizer.py): at tokens that are one to one the KL over them and the rest, at other spans the binary KL.
Both merge outcomes, so that the sum over a reply is a lower bound of the KL between the two. It is told a token of the
student's, and says nothing beside a KL over one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from proxykd.data.aligned_labels import aligned
from proxykd.data.soft_labels import SoftLabels
from proxykd.evaluation.fidelity import my_batches
from proxykd.losses.cross_tokenizer import aligned_kl
from proxykd.losses.sequence_losses import sequence_sums
from proxykd.models.parallel import Workers
from proxykd.models.scorer import CompletionScorer
from proxykd.text.corpus import Row, record_of
from proxykd.text.vocabulary_map import VocabularyMap

LIKELIEST = 64
"""Of the teacher's tokens; all others are the rest."""


def labelled_by(
    teacher: CompletionScorer,
    rows: Sequence[Row],
    student_rows: Sequence[Row],
    vocabularies: VocabularyMap,
    workers: Workers,
    micro_batch_tokens: int,
) -> list[Row]:
    """The student's rows with the teacher's labels, in both vocabularies; `rows` are in the teacher's. On every
    worker."""
    by_id: Mapping[str, Row] = {row["id"]: row for row in rows}
    taught = [by_id[row["id"]] for row in student_rows]
    found: dict[int, Row] = {}
    for _, part, batch in my_batches(teacher, taught, workers, micro_batch_tokens):
        scores = teacher.score(batch, min(LIKELIEST, teacher.vocabulary))
        assert scores.top is not None
        columns = (scores.top.ids_NK, scores.top.logps_NK, scores.top.tail_logmass_N, scores.token_logps_N)
        sides = zip(*(column.cpu().split(batch.lengths_B.tolist()) for column in columns), strict=True)
        for index, (ids, logps, tail, own) in zip(part, sides, strict=True):
            record, row = record_of(taught[index]), student_rows[index]
            replies = (
                side.read(record, ids_T)
                for side, ids_T in (
                    (vocabularies.proxy, row["proxy_ids"]),
                    (vocabularies.student, row["completion_ids"]),
                )
            )
            ours, theirs = replies
            images_NK = vocabularies.images(vocabularies.pair(ours, theirs), theirs, ids.numpy())
            labels = SoftLabels(row["id"], "", ids.numpy(), logps.numpy(), tail.numpy(), own.numpy(), float(own.sum()))
            found[index] = {**row, "soft_labels": labels, "images": images_NK.astype("<i4").tobytes()}
    everyones = {index: row for share in workers.gather_objects(found) for index, row in share.items()}
    return [everyones[index] for index in range(len(student_rows))]


def boundary_kls(
    scorer: CompletionScorer, rows: Sequence[Row], workers: Workers, micro_batch_tokens: int
) -> list[float]:
    """Of each of the rows that `labelled_by` gave, the sum in nats, on every worker."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=workers.device)
    for _, part, batch in my_batches(scorer, rows, workers, micro_batch_tokens):
        target = aligned([rows[i] for i in part], batch.labels_N)
        with torch.no_grad():
            scores = scorer(batch, target.top.ids_NK)
            kl_N = aligned_kl(target, scores.token_logps_N, scores.top)
        sums[part] = sequence_sums(kl_N.double(), batch.lengths_B)
    found: list[float] = workers.sum(sums).tolist()
    return found
