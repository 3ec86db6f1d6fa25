"""The proxy's deployment on real vLLM, in both adapter modes: every answer is of the adapter that it names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.data.engine_shards import EngineCall, Sampler, ShardMaker
from actors.data.spreading import OnRay
from actors.engine.app_names import proxy_app
from proxykd.config import ENGINE_TOP_K
from proxykd.data.corpus_store import write_rows
from proxykd.data.pairs import read_pairs
from proxykd.data.row_ranges import whole
from proxykd.data.soft_labels import LabelSource
from proxykd.errors import EngineError
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.runs.storage import read_table
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.sampling import Room
from proxykd.training.stage_losses import CoarseLoss
from tests.engine_scores import told
from tests.inline_run import Untold

PROMPTS = [[1, 40 + i, 60 + i, 30] for i in range(24)]
COMPLETIONS = [[70 + i, 80, 90 + i, 2] for i in range(24)]


def adapters(run):
    return [None, *sorted(path.name for path in run.adapters.iterdir())]


def trainer_logps(run, directory):
    config = run.config()
    scorer = load_scorer(
        run.models / "proxy", config.proxy, adapter=run.adapters / directory if directory else None, trainable=False
    )
    scores = scorer.score(collate(PROMPTS, COMPLETIONS), 5)
    return scores.token_logps_N.numpy(), scores.top.logps_NK.numpy(), scores.top.tail_logmass_N.numpy()


def test_scores_are_the_trainers_for_every_adapter_and_swapping_back_is_exact(engine):
    run, _, call = engine
    first = {}
    for directory in [*adapters(run), *adapters(run)]:
        scored = call(directory)("score", prompts=PROMPTS, completions=COMPLETIONS, top_k=5)
        token_logps = np.concatenate([s.token_logps_T for s in scored])
        expected, top, tail = trainer_logps(run, directory)
        assert np.abs(token_logps - expected).max() < 2e-3
        assert np.abs(np.concatenate([s.top_logps_TK for s in scored]) - top).max() < 2e-3
        assert np.abs(np.concatenate([s.tail_logmass_T for s in scored]) - tail).max() < 2e-2
        assert {s.adapter for s in scored} == {call(directory).adapter}
        if directory in first:
            assert np.abs(token_logps - first[directory]).max() < 1e-4
        first[directory] = token_logps
    distances = [np.abs(first[a] - first[b]).mean() for a in first for b in first if a != b]
    assert min(distances) > 0.1


def test_a_students_samples_are_judged_as_by_the_proxy_beside_it(engine):
    """Value and gradient of the on-policy loss, from the engine's log-probs and from a forward pass of the trainer's."""
    run, _, call = engine
    directory = adapters(run)[-1]
    proxy = load_scorer(run.models / "proxy", run.config().proxy, adapter=run.adapters / directory, trainable=False)
    frozen = run.config().student.model_copy(update={"method": "full"})
    found = {}
    for who, ask in (("engine", partial(call(directory), "score")), ("trainer", partial(told, proxy))):
        student = load_scorer(run.models / "student", frozen)
        judged = ask(prompts=PROMPTS, completions=COMPLETIONS, top_k=ENGINE_TOP_K)
        rows = [
            {"prompt_ids": prompt, "completion_ids": ids, "judged": one}
            for prompt, ids, one in zip(PROMPTS, COMPLETIONS, judged, strict=True)
        ]
        terms, _ = CoarseLoss(rows, "reverse_kl")(student, rows)
        terms["divergence"].backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        found[who] = float(terms["divergence"].detach()), gradient
    assert found["engine"][0] == pytest.approx(found["trainer"][0], rel=1e-3)
    assert float((found["engine"][1] - found["trainer"][1]).norm()) < 1e-2 * float(found["trainer"][1].norm())


def test_tasks_feed_it_and_each_row_has_its_own_answer(engine, tmp_path):
    run, _, call = engine
    directory = adapters(run)[-1]
    rows = [
        {"id": f"r{i}", "prompt_ids": prompt, "completion_ids": ids}
        for i, (prompt, ids) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True))
    ]
    source = whole(write_rows(tmp_path / "rows", rows, 7))
    labels_at, pairs_at = ({tmp_path / to / Path(one.path).name: [one] for one in source} for to in ("labels", "pairs"))
    maker = ShardMaker(run, OnRay(), Untold)
    labelled_as = LabelSource(directory, "any", len(load_tokenizer(run.models / "proxy")), 5)
    maker.soft_labels(labels_at, call(directory), labelled_as)
    found = [row["sequence_logp"] for path in labels_at for row in read_table(path).to_pylist()]
    expected, *_ = trainer_logps(run, directory)
    assert np.abs(np.array(found) - expected.reshape(24, -1).sum(1)).max() < 1e-2
    maker.pairs(pairs_at, Sampler(call(directory), 1, 0, Room(16)), run.config().alignment)
    pairs = [pair for path in pairs_at for pair in read_pairs(path)]
    assert [pair["id"] for pair in pairs] == [row["id"] for row in rows]
    assert {pair["adapter"] for pair in pairs} == {call(directory).adapter}
    assert all(len(pair["prompt_ids"]) + len(pair["rejected_ids"]) <= 16 for pair in pairs)


def test_every_replica_sleeps_and_wakes_as_it_was(engine, deployer):
    """On a CPU vLLM gives no memory back, and does all else that sleeping asks."""
    from ray import serve

    run, spec, call = engine
    mine = call(adapters(run)[-1])
    question = {"prompts": PROMPTS, "completions": COMPLETIONS, "top_k": 5, "deadline_s": 120.0}
    before = mine("score", prompts=PROMPTS, completions=COMPLETIONS, top_k=5)
    handle = serve.get_app_handle(proxy_app(spec.prefix))
    unanswered = [handle.score.remote(mine.adapter, **question) for _ in range(3)]
    deployer.rest_proxy(spec)
    assert [len(one.result(timeout_s=0.1)) for one in unanswered] == [24] * 3
    with pytest.raises(EngineError, match="sleeps while the run trains"):
        handle.score.remote(mine.adapter, **question).result()
    deployer.rest_proxy(spec)
    deployer.deploy_proxy(replace(spec, sleeps=True))
    after = mine("score", prompts=PROMPTS, completions=COMPLETIONS, top_k=5)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.token_logps_T - other.token_logps_T).max() < 1e-4


def test_interleaved_requests_are_answered_each_by_its_own_adapter(engine):
    import ray
    from ray import serve

    run, _, call = engine
    handle = serve.get_app_handle(proxy_app(run.id))
    names = adapters(run)
    expected = {d: call(d)("score", prompts=PROMPTS[:2], completions=COMPLETIONS[:2], top_k=1) for d in names}
    pending = []
    for i in range(30):
        directory = names[i % 3]
        request = handle.score.remote(
            call(directory).adapter, prompts=PROMPTS[:2], completions=COMPLETIONS[:2], top_k=1, deadline_s=120.0
        )
        pending.append((directory, request))
    for directory, request in pending:
        for one, two in zip(request.result(timeout_s=150), expected[directory], strict=True):
            assert np.abs(one.token_logps_T - two.token_logps_T).max() < 1e-3
            assert one.adapter == call(directory).adapter
    assert ray.is_initialized()


def test_seeded_samples_repeat_and_end_by_stop_or_length(engine):
    run, _, call = engine
    directory = adapters(run)[1]
    request = {"prompts": PROMPTS, "max_tokens": [12] * 24, "seeds": list(range(24))}
    first = call(directory)("generate", **request)
    again = call(directory)("generate", **request)
    assert [g.token_ids for g in first] == [g.token_ids for g in again]
    assert len({tuple(g.token_ids) for g in first}) > 12
    for generation in first:
        assert generation.stopped == (generation.token_ids[-1] == 2 or len(generation.token_ids) < 12)
        assert generation.adapter == call(directory).adapter


def test_each_row_has_its_own_room(engine):
    run, _, call = engine
    rooms = [1, 3, 9, 12]
    request = {"prompts": PROMPTS[:1] * 4, "seeds": [5] * 4}
    drawn = call(adapters(run)[1])("generate", **request, max_tokens=rooms)
    longest = drawn[-1].token_ids
    for generation, room in zip(drawn, rooms, strict=True):
        assert generation.token_ids == longest[:room]
        assert generation.stopped == (len(longest) < room or longest[:room][-1] == 2)


def test_unknown_adapters_are_refused_with_the_known_ones(engine):
    run, this, call = engine
    for name in (f"{run.id}-r99-00000000", "other-run-base", f"{run.id}-../models/proxy"):
        with pytest.raises(Exception, match=r"unknown adapter .*known: .*-base") as error:
            EngineCall(proxy_app(run.id), name, 60.0)("generate", prompts=PROMPTS[:1], max_tokens=[1], seeds=[0])
        assert this.adapter_name(adapters(run)[1]) in str(error.value)
    assert call(None)("generate", prompts=PROMPTS[:1], max_tokens=[1], seeds=[0])


def test_a_deadline_ends_a_request_and_the_engine_goes_on(engine):
    run, _, call = engine
    late = EngineCall(proxy_app(run.id), call(None).adapter, 0.001)
    with pytest.raises(Exception, match="TimeoutError"):
        late("generate", prompts=PROMPTS, max_tokens=[80] * 24, seeds=[None] * 24)
    assert len(call(None)("generate", prompts=PROMPTS[:3], max_tokens=[4] * 3, seeds=[1, 2, 3])) == 3
