"""`proxykd serve-student`: the student of a finished run by OpenAI's API, and its teacher for what it doubts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.cluster.http_options import HttpOptions
from actors.engine.app_names import student_app, student_proxy_app, student_rest_app
from proxykd.certification.certificate_model import Certificate
from proxykd.certification.doubt_files import CERTIFICATE, DOUBT, WITH_PROXY, read_doubt
from proxykd.certification.wording import fall_back_sentence
from proxykd.collection.api_keys import api_key
from proxykd.config import CollectConfig
from proxykd.errors import BenchmarkError, ConfigError
from proxykd.runs.json_model import read_model
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import READY
from services.cli.serving import Served, hold
from services.cli.starting import say_where_terms_go
from services.rest.fall_back import FallBack

if TYPE_CHECKING:
    from actors.engine.proxy_engine import EngineSpec
    from services.rest.deployments import ServeDeployer


@dataclass(frozen=True)
class FallBackOptions:
    """What the command line says of a teacher in the student's place: a `share` of the traffic like the certificate's,
    or from which doubt on, by the student's log-probs or by the proxy's too; and where to keep what it answers."""

    config: CollectConfig
    share: float | None
    threshold: float | None
    with_proxy: bool
    keep: str | None


def serve_student(
    run: RunDirectory, options: FallBackOptions | None, *, address: str | None, http: HttpOptions
) -> None:
    """Serves the student; with `options` its doubtful prompts are the teacher's. Blocks as `serve_run` does.

    Raises:
        ProxykdError: as serve_run; no student; no certificate of this student with a doubt in it, or no key or budget
            for the teacher.
    """
    if not (run.student / READY).exists():
        raise BenchmarkError(f"{run.id} has no student yet; go on with: proxykd resume {run.root}")
    fall_back = None if options is None else _fall_back(run, options)
    asks_proxy = fall_back is not None and fall_back.doubt.proxy is not None

    def deploy(deployer: ServeDeployer, http: HttpOptions) -> str:
        from actors.engine.proxy_engine import EngineSpec
        from services.rest.engine_service import ServiceSpec

        config = run.config()
        engine = EngineSpec.of_student(run, config)
        print(f"starting the engine for {engine.adapter_name(None)}")
        deployer.deploy_student(engine)
        if fall_back is not None and fall_back.doubt.proxy is not None:
            _start_reader(deployer, EngineSpec.of_student_proxy(run, config), fall_back.doubt.proxy)
        name = engine.adapter_name(None)
        spec = ServiceSpec.of_run(run, config, http, beside_run=False, default_adapter=name)
        return deployer.deploy_student_rest(spec, fall_back)

    def tell(url: str) -> None:
        print(f"\nthe student of {run.id} answers at {url}/v1 (OpenAI's API); {url}/docs describes it")
        if fall_back is not None:
            certificate = read_model(run.report.parent / CERTIFICATE, Certificate)
            told = certificate.doubt_with_proxy if asks_proxy else certificate.doubt
            assert told is not None
            print(fall_back_sentence(told, fall_back.threshold, fall_back.config.teacher.model))
        print("Ctrl-C, or proxykd stop RUN --serving, ends it.", flush=True)

    apps = (student_rest_app(run.id), student_app(run.id), *([student_proxy_app(run.id)] if asks_proxy else []))
    hold(run, Served(student_app(run.id), apps, deploy, tell), address, http)


def _start_reader(deployer: ServeDeployer, spec: EngineSpec, proxy: str) -> None:
    """The proxy that reads what the student says, with its adapter in the weights.

    Raises:
        ResourceError: no GPUs are left for a second engine.
    """
    name = spec.adapter_name(proxy)
    print(f"starting the engine for {name}, which reads what the student says")
    handle = deployer.deploy_student_proxy(spec)
    handle.score.remote(name, prompts=[[0]], completions=[[0]], top_k=1, deadline_s=LOAD_S).result()


LOAD_S = 600.0
"""Within which an adapter is in the weights."""


def _fall_back(run: RunDirectory, options: FallBackOptions) -> FallBack:
    doubt, config = read_doubt(run, WITH_PROXY if options.with_proxy else DOUBT), options.config
    teacher, collection = config.teacher, config.collection
    if collection.batch is not None:
        raise ConfigError("--fall-back: collection.batch answers within a day, and clients wait; remove it")
    if collection.budget.tokens is None and collection.budget.cost is None:
        raise ConfigError(
            "--fall-back: nothing bounds what clients may spend; set collection.budget.tokens, or .cost with "
            "collection.prices"
        )
    api_key(teacher)  # where there is none, it is said here
    keep = None if options.keep is None else str(Path(options.keep).absolute())
    if keep is not None:
        say_where_terms_go(teacher)
    if teacher.api_key_file is not None:
        file = {"api_key_file": str(Path(teacher.api_key_file).absolute())}
        config = config.model_copy(update={"teacher": teacher.model_copy(update=file)})
    threshold = options.threshold if options.share is None else doubt.threshold(options.share)
    assert threshold is not None
    return FallBack(config, doubt, threshold, keep)
