"""`proxykd certify` from start to end: a judge over real HTTP that misbehaves, gold answers, what is refused and kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
import torch
import yaml

from proxykd.certification import doubt
from proxykd.certification.answers import Answer, AnswerScore, Kept
from proxykd.certification.certificate_model import Certificate
from proxykd.certification.doubt_files import WITH_PROXY, read_doubt
from proxykd.certification.prompts import Columns, own_prompts
from proxykd.collection.response_log import read_log
from proxykd.config import load_certify_config
from proxykd.data import corpus_store
from proxykd.data.corpus_store import read_slice
from proxykd.errors import BenchmarkError, ConfigError
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.report.adapter_catalogue import adapters_in_force
from proxykd.runs.json_model import read_model
from proxykd.runs.storage import write_json
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from tests.teacher_stub import teacher_stub
from tests.unit.certification.conftest import OWN, SEEN, certify, rows, write_rows

MODELS = 4
"""The student, the one by SFT, the proxy and the student's start."""
ALONE = ("--beside", "none")


def judge_file(folder, stub, judge=None, teacher=None, **collection):
    path = folder / "judge.yaml"
    quick = {"timeout_s": 20.0, "give_up_after_s": 60.0, "concurrency": 8}
    asked = {"model": "stub-1", "base_url": stub.base_url, "max_tokens": 32} | (teacher or {})
    path.write_text(yaml.safe_dump({"teacher": asked, "judge": judge or {}, "collection": quick | collection}))
    return path


def certificate_of(run) -> Certificate:
    return read_model(run.root / "report" / "certificate.json", Certificate)


def written(run) -> list[bytes]:
    return [(run.root / "report" / f"certificate.{kind}").read_bytes() for kind in ("json", "html")]


def answers(run, model):
    lines = (run.root / "certificate" / "answers" / model).glob("*.jsonl")
    return {row["id"]: row["text"] for path in lines for row in map(json.loads, path.read_text().splitlines())}


def test_gold_answers_need_no_judge(finished):
    """The expressions of the file, looked for in what was answered."""
    run, done = finished
    found = certificate_of(run)
    assert found.prompts == {
        "given": OWN, "compared": OWN, "exact": OWN, "identical": 0, "judged": 0, "without_teacher": 0,
    }  # fmt: skip
    assert set(found.overall.beside) == {"sft"}
    assert found.overall.right["teacher"] == 1.0
    wanted = {row["prompt"]: row["gold"].strip("/") for row in rows(SEEN, OWN)}
    said = answers(run, "student")
    prompts = own_prompts(run, str(run.root.parents[1] / "own.jsonl"), Columns())
    right = sum(wanted[one.text] in said[one.id] for one in prompts)
    assert found.overall.right["student"] == pytest.approx(right / OWN)
    assert found.overall.student.net == pytest.approx(right / OWN - 1.0)
    assert (found.judge, found.length) == (None, None)
    assert "net" in done.output
    assert "teacher" in done.output


def test_a_judge_decides_and_is_asked_once(run, own, tmp_path):
    """It likes the shorter answer, so that everything it says is known; a second start asks nothing and writes the same."""
    with teacher_stub(judge="shorter") as stub:
        config = judge_file(tmp_path, stub, {"repeats": 1.0})
        wanted = ("--prompts", own, "--judge", config, "--by", "kind", "--beside", "sft")
        done = certify(run, *wanted)
        assert done.exit_code == 0, done.output
        first, bytes_then = stub.stats(), written(run)
        assert first["answered_twice"] == 0
        again = certify(run, *wanted)
        assert again.exit_code == 0
        assert stub.stats()["answered"] == first["answered"]
    assert written(run) == bytes_then
    found, said = certificate_of(run), answers(run, "student")
    teacher = {row["prompt"]: row["completion"] for row in rows(SEEN, OWN)}
    prompts = own_prompts(run, str(own), Columns())
    lengths = [(len(said[p.id]), len(teacher[p.text])) for p in prompts if said[p.id] != teacher[p.text]]
    signs = [(mine < its) - (mine > its) for mine, its in lengths]
    assert found.prompts["judged"] == len(signs)
    assert found.overall.student.wins == signs.count(1)
    assert found.overall.student.losses == signs.count(-1)
    assert found.overall.student.net == pytest.approx(sum(signs) / OWN)
    judge = found.judge
    assert (judge.swapped.agree, judge.first_wins_both) == (judge.swapped.count, 0)
    assert (judge.repeated.agree, judge.repeated.count) == (len(signs), len(signs))
    assert judge.spent.models == ["stub-1"]
    assert judge.spent.replies == first["answered"]
    assert (found.length.longer_won.agree, found.length.longer_won.count) == (0, len([s for s in signs if s]))
    assert {(one.kind, one.name) for one in found.slices} >= {("kind", "even"), ("kind", "odd")}
    assert sum(one.student.prompts for one in found.slices if one.kind == "kind") == OWN
    page = written(run)[1].decode()
    assert "Where the student lost most" in page
    assert "src=" not in page
    assert "<script" not in page


def test_a_judge_that_likes_what_stands_first_decides_nothing(run, own, tmp_path):
    with teacher_stub(judge="first") as stub:
        done = certify(run, "--prompts", own, "--judge", judge_file(tmp_path, stub), *ALONE)
    assert done.exit_code == 0, done.output
    found = certificate_of(run)
    assert found.judge.swapped.agree == 0
    assert found.judge.first_wins_both == found.judge.swapped.count == found.prompts["judged"]
    assert found.overall.student.ties == OWN
    assert found.overall.student.net == 0
    assert "the first answer won both times in" in done.output


@pytest.mark.parametrize(("judge", "said"), [("", "no verdict in the reply"), ("refuses", "refusal")])
def test_a_judge_that_says_nothing_is_named(judge, said, run, own, tmp_path):
    with teacher_stub(judge=judge) as stub:
        done = certify(run, "--prompts", own, "--judge", judge_file(tmp_path, stub), *ALONE)
    assert done.exit_code == 2
    assert f"replies could be read; the first: {said}" in done.output
    assert not (run.root / "report" / "certificate.json").exists()


def test_what_a_judge_leaves_open_counts_against_the_student(run, own, tmp_path):
    with teacher_stub(judge="some") as stub:
        done = certify(run, "--prompts", own, "--judge", judge_file(tmp_path, stub), *ALONE)
    assert done.exit_code == 0, done.output
    found = certificate_of(run)
    mine, lost = found.overall.student, found.judge.unread["no verdict in the reply"]
    assert 0 < mine.unread <= lost
    assert mine.wins + mine.ties + mine.losses + mine.unread == OWN
    assert "which count as lost" in done.output


def test_a_judge_that_is_down_costs_nothing_and_is_asked_again(run, own, tmp_path):
    with teacher_stub(always="503", judge="longer") as stub:
        config = judge_file(tmp_path, stub, max_retries=0)
        done = certify(run, "--prompts", own, "--judge", config, *ALONE)
        assert done.exit_code == 2
        assert "prompts in a row got no answer, the last one: HTTP 503" in done.output
        stub.control(judge="longer")
        done = certify(run, "--prompts", own, "--judge", config, *ALONE)
        assert done.exit_code == 0, done.output
        assert stub.stats()["answered_twice"] == 0


def test_a_judge_that_changes_its_name_stops_the_certificate(run, own, tmp_path):
    with teacher_stub(judge="longer", model_after=9) as stub:
        config = judge_file(tmp_path, stub)
        done = certify(run, "--prompts", own, "--judge", config, *ALONE)
        assert done.exit_code == 2
        assert "the provider answers as stub-2 now, as stub-1 before" in done.output
        asked = stub.stats()["answered"]
        both = ("--set", "collection.accept_models=[stub-1, stub-2]")
        done = certify(run, "--prompts", own, "--judge", config, *both, *ALONE)
        assert done.exit_code == 0, done.output
        stats = stub.stats()
    found = certificate_of(run)
    assert found.judge.spent.models == ["stub-1", "stub-2"]
    assert found.judge.unread == {}
    assert stats["answered_twice"] == 0
    assert stats["answered"] == found.judge.spent.replies > asked


def test_a_budget_that_is_spent_stops_and_keeps(run, own, tmp_path):
    with teacher_stub(judge="longer") as stub:
        config = judge_file(tmp_path, stub, budget={"tokens": 6_000})
        done = certify(run, "--prompts", own, "--judge", config, *ALONE)
        assert done.exit_code == 2
        assert "raise collection.budget" in done.output
        assert "are kept; starting again sends the rest" in done.output
        done = certify(run, "--prompts", own, "--judge", config, "--set", "collection.budget.tokens=1000000", *ALONE)
        assert done.exit_code == 0, done.output
        assert stub.stats()["answered_twice"] == 0


def test_killed_at_any_moment_it_goes_on_and_asks_only_what_was_in_flight(run, own, tmp_path):
    concurrency = 4
    with teacher_stub(judge="longer", latency_s=0.05) as stub:
        config = judge_file(tmp_path, stub, concurrency=concurrency)
        command = [sys.executable, "-m", "services.cli.main", "certify", str(run.root), "--engine", "transformers"]
        command += ["--prompts", str(own), "--judge", str(config), "--beside", "sft"]
        kills = 0
        for enough in (10, 50):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while stub.stats()["answered"] < enough and process.poll() is None:
                    time.sleep(0.05)
                kills += process.poll() is None
                process.kill()
        assert kills == 2
        done = certify(run, "--prompts", own, "--judge", config, "--beside", "sft")
        assert done.exit_code == 0, done.output
        stats = stub.stats()
        assert stats["answered_twice"] <= kills * concurrency
    kept = read_log(run.root / "certificate" / "judge" / "responses")
    found = certificate_of(run)
    assert found.judge.spent.replies == len(kept.replies)
    assert found.judge.unread == {}
    undisturbed = written(run)[0]
    assert certify(run, "--prompts", own, "--judge", config, "--beside", "sft").exit_code == 0
    assert written(run)[0] == undisturbed


def test_what_is_enough_for_a_doubt_has_one_and_too_little_says_so(run, own, monkeypatch):
    """The student's own log-probs of what it answered, by the model that trained it; a second start reckons none anew."""
    wanted = ("--prompts", own, "--gold", "gold", *ALONE)
    done = certify(run, *wanted)
    assert done.exit_code == 0, done.output
    assert "not enough data" in done.output
    assert certificate_of(run).doubt.curve == ()
    assert not (run.root / "report" / "doubt.json").exists()
    with pytest.raises(
        BenchmarkError, match=r"has no such doubt: not enough data, \d+ of 40 answers lost; .* again: proxykd certify"
    ):
        read_doubt(run)
    monkeypatch.setattr(doubt, "FEWEST_PROMPTS", OWN)
    monkeypatch.setattr(doubt, "FEWEST_OF_A_KIND", 2)
    done = certify(run, *wanted)
    assert done.exit_code == 0, done.output
    found, kept = certificate_of(run).doubt, read_doubt(run)
    prompts, said = own_prompts(run, str(own), Columns()), answers(run, "student")
    assert kept.certified == sorted(one.key for one in prompts)
    assert found.lost == OWN - round(certificate_of(run).overall.right["student"] * OWN)
    scores = Kept(run.certificate / "scores", AnswerScore).read("student")
    scorer, chat = (
        load_scorer(run.student, run.config().student, trainable=False),
        ChatFormat(load_tokenizer(run.student)),
    )
    for one in prompts[:5]:
        batch = collate([chat.prompt_ids(one.messages)], [chat.completion_ids(said[one.id])])
        assert scores[one.id].logps == pytest.approx(scorer.score(batch).token_logps_N.tolist(), abs=1e-4)
    assert "Doubt by the student's log-probs" in unescape(written(run)[1].decode())
    bytes_then = written(run)
    assert certify(run, *wanted).exit_code == 0
    assert written(run) == bytes_then
    write_json(run.student / "manifest.json", {"files": {"model.safetensors": "another"}})
    with pytest.raises(BenchmarkError, match=r"the certificate of .* is of the student .*, and the run's student is"):
        read_doubt(run)
    (run.root / "report" / "certificate.json").unlink()
    with pytest.raises(BenchmarkError, match=r"has no certificate, .*; first: proxykd certify"):
        read_doubt(run)


def test_a_proxy_that_is_beside_reads_the_answers_too(run, own, monkeypatch):
    """By the proxy's log-probs of what the student answered, with the adapter that it learned from."""
    monkeypatch.setattr(doubt, "FEWEST_PROMPTS", OWN)
    monkeypatch.setattr(doubt, "FEWEST_OF_A_KIND", 2)
    wanted = ("--prompts", own, "--gold", "gold")
    assert certify(run, *wanted, *ALONE).exit_code == 0
    assert certificate_of(run).doubt_with_proxy is None
    with pytest.raises(BenchmarkError, match="no such doubt: no proxy was beside the student"):
        read_doubt(run, WITH_PROXY)
    done = certify(run, *wanted, "--beside", "proxy")
    assert done.exit_code == 0, done.output
    assert "by the student's and the proxy's log-probs" in " ".join(done.output.split())
    kept = read_doubt(run, WITH_PROXY)
    assert kept.proxy == adapters_in_force(run)[-1]["adapter"]
    assert read_doubt(run).proxy is None
    scores = Kept(run.certificate / "scores", AnswerScore).read("proxy")
    adapter = run.adapters / kept.proxy
    scorer = load_scorer(run.models / "proxy", run.config().proxy, adapter=adapter, trainable=False)
    chat, said = ChatFormat(load_tokenizer(run.models / "proxy")), answers(run, "student")
    for one in own_prompts(run, str(own), Columns())[:5]:
        batch = collate([chat.prompt_ids(one.messages)], [chat.completion_ids(said[one.id])])
        assert scores[one.id].logps == pytest.approx(scorer.score(batch).token_logps_N.tolist(), abs=1e-3)
    assert certify(run, *wanted, *ALONE).exit_code == 0
    assert not (run.root / "report" / WITH_PROXY).exists()  # of no certificate that is there


def test_prompts_of_the_corpus_are_refused(run, tmp_path):
    seen = rows(0, 3)
    seen[1]["prompt"] = f"  {seen[1]['prompt'].upper()} "  # the same, however it is written
    for row in seen:
        mixed = write_rows(tmp_path / "mixed.jsonl", [*rows(SEEN, OWN), row])
        done = certify(run, "--prompts", mixed, "--gold", "gold", *ALONE)
        assert done.exit_code == 2
        assert "1 of its 41 prompts are in the run's corpus" in done.output
        assert row["prompt"] in done.output


def test_prompts_that_the_proxy_answered_for_the_student_are_refused(run, own):
    """Those of corpus.unlabelled, of which there are rows beside the answers."""
    first = own_prompts(run, str(own), Columns())[0]
    row = {"id": "u", "prompt_ids": [1], "completion_ids": [], "prompt": first.text, "prompt_key": first.key}
    corpus_store.write_rows(run.answers("r01-abc") / "prompts", [row], 8)
    done = certify(run, "--prompts", own, "--gold", "gold", *ALONE)
    assert done.exit_code == 2
    assert "is in the slice unlabelled" in " ".join(done.output.split())


def test_too_few_prompts_say_how_many_more_are_needed(run, tmp_path):
    few = write_rows(tmp_path / "few.jsonl", [{**row, "gold": "/./"} for row in rows(SEEN, 12)])
    done = certify(run, "--prompts", few, "--gold", "gold", *ALONE)
    assert done.exit_code == 0, done.output
    found = certificate_of(run).overall
    assert found.verdict == "not enough data"
    assert found.student.ties == 12
    assert 47 <= found.more <= 120
    assert f"about {found.more} prompts more" in " ".join(done.output.split())


def test_more_prompts_are_asked_alone(run, own, tmp_path):
    """A file that has grown: what was answered and judged stands."""
    with teacher_stub(judge="longer") as stub:
        config = judge_file(tmp_path, stub)
        few = write_rows(tmp_path / "few.jsonl", rows(SEEN, 20))
        assert certify(run, "--prompts", few, "--judge", config, *ALONE).exit_code == 0
        then = stub.stats()["answered"]
        done = certify(run, "--prompts", own, "--judge", config, *ALONE)
        assert done.exit_code == 0, done.output
        stats = stub.stats()
    assert stats["answered_twice"] == 0
    assert stats["answered"] == certificate_of(run).judge.spent.replies > then


def test_the_teacher_is_asked_for_what_it_has_not_answered(run, own, tmp_path):
    bare = write_rows(tmp_path / "bare.jsonl", rows(SEEN, OWN), without=("completion",))
    refused = certify(run, "--prompts", bare, "--gold", "gold", *ALONE)
    assert refused.exit_code == 2
    assert "40 of 40 prompts lack the teacher's answer, and the run's teacher has no address" in refused.output
    with teacher_stub() as stub:
        teacher = judge_file(tmp_path, stub)
        raw = {key: value for key, value in yaml.safe_load(teacher.read_text()).items() if key != "judge"}
        teacher.write_text(yaml.safe_dump(raw))
        done = certify(run, "--prompts", bare, "--gold", "gold", "--teacher", teacher, *ALONE)
        assert done.exit_code == 0, done.output
        assert stub.stats()["answered"] == OWN
        assert certify(run, "--prompts", bare, "--gold", "gold", "--teacher", teacher, *ALONE).exit_code == 0
        assert stub.stats()["answered"] == OWN
    found = certificate_of(run)
    assert found.teacher_spent.replies == OWN
    assert found.overall.right["teacher"] < 0.2  # it writes other words


def test_a_prompt_that_is_longer_than_an_answer_is_read_whole(run, tmp_path):
    """It lost its beginning, template and all."""
    from transformers import AutoModelForCausalLM

    long = [{**row, "prompt": " ".join([row["prompt"]] * 24)} for row in rows(SEEN, 4)]
    path, out = write_rows(tmp_path / "long.jsonl", long), tmp_path / "out"
    done = certify(run, "--prompts", path, "--gold", "gold", "--beside", "none", "--output", out)
    assert done.exit_code == 0, done.output
    said = sorted(answer.text for answer in Kept(out / "answers", Answer).read("student").values())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.student), load_tokenizer(run.student)
    expected = []
    for row in long:
        ids = ChatFormat(tokenizer).prompt_ids(({"role": "user", "content": row["prompt"]},))
        assert len(ids) > run.config().corpus.max_length  # which is what an answer may have
        whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=run.config().corpus.max_length)
        expected.append(tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True).strip())
    assert said == sorted(expected)


def test_the_test_slice_needs_no_file(run, tmp_path):
    with teacher_stub(judge="longer") as stub:
        done = certify(run, "--judge", judge_file(tmp_path, stub), *ALONE)
    assert done.exit_code == 0, done.output
    found = certificate_of(run)
    assert found.prompts["given"] == len({row["prompt_key"] for row in read_slice(run, "test")})
    assert found.facts.source == "the run's test slice"
    assert "/" not in found.facts.student  # where it lies is nobody's business


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "have no gold answer; name the judge of their answers with --judge CONFIG"),
        (("--gold", "sum"), "--gold sum: .* has no such column; its columns are id, prompt, completion, gold, kind"),
        (("--gold", "gold", "--by", "topic"), "--by topic: .* has no such column"),
        (("--gold", "gold", "--beside", "friend"), "--beside 'friend': this run has sft, proxy, base beside its student"),
        (("--gold", "gold", "--set", "judge.rubric=x"), "--set judge.rubric=x is for the judge's config"),
        (("--gold", "gold", "--max-length", "64"), "holds answers that were given with {'max_tokens': 96"),
        (("--gold", "gold", "--max-length", "24"), r"--max-length 24: the prompt '.*' takes 2\d of the student's tokens and leaves no 12"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, said, run, own):
    done = certify(run, "--prompts", own, *arguments)
    assert done.exit_code == 2
    assert re.search(said, done.output.replace("\n", " ")), done.output


def test_a_dry_run_asks_nothing(run, own, tmp_path):
    with teacher_stub(judge="longer") as stub:
        done = certify(run, "--prompts", own, "--judge", judge_file(tmp_path, stub, {"repeats": 0.5}), "--dry-run")
        assert done.exit_code == 0, done.output
        assert stub.stats()["answered"] == 0
    assert f"the judge is asked {2 * OWN * MODELS + OWN // 2} times at most" in done.output


def test_the_judge_of_the_docs_is_a_config(tmp_path):
    [shown] = re.findall(r"```yaml\n(teacher: .*?)```", Path("docs/certify.md").read_text(), re.DOTALL)
    (tmp_path / "judge.yaml").write_text(shown)
    config = load_certify_config(tmp_path / "judge.yaml")
    assert config.judge.rubric.startswith("A support agent")
    assert config.collection.budget.cost == 20
    with pytest.raises(ConfigError, match=r"teacher.samples is 3, but a judge is asked once a comparison"):
        load_certify_config(tmp_path / "judge.yaml", ("teacher.samples=3",))
