"""`proxykd`: the command line. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxykd import __version__
from proxykd.errors import ConfigError, ProxykdError, RunError

if TYPE_CHECKING:
    from actors.cluster.http_options import HttpOptions

OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a config value."
)
ADDRESS = click.option(
    "--address",
    envvar="RAY_ADDRESS",
    help="A running Ray cluster (host:port or auto); default: $RAY_ADDRESS, which Ray sets in a job, else a local one.",
)


def http_options(command: Callable[..., None], port: int = 8000) -> Callable[..., None]:
    """Adds --http-host, --http-port and --api-keys, and hands the command their sum as `http`."""

    @click.option("--http-host", default="127.0.0.1", show_default=True, help="Address that the routes bind to.")
    @click.option(
        "--http-port",
        type=click.IntRange(1, 65535),
        help=f"Port of the routes; default: {port}, or the next that is free.",
    )
    @click.option("--api-keys", metavar="FILE", help="API keys, one a line; default: $PROXYKD_API_KEYS, by commas.")
    @functools.wraps(command)
    def with_http(http_host: str, http_port: int | None, api_keys: str | None, **arguments: Any) -> None:
        from actors.cluster.http_options import HttpOptions
        from services.access.keys import key_digests, require_keys_beyond_loopback

        digests = key_digests(api_keys)
        require_keys_beyond_loopback(http_host, digests)
        command(http=HttpOptions(http_host, http_port or port, digests, or_next=http_port is None), **arguments)

    return with_http


class Group(click.Group):
    """A ProxykdError ends the command with its message alone and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ProxykdError as error:
            click.echo(f"proxykd: {error}", err=True)
            sys.exit(2)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Proxy-KD: from a proprietary model's text to a small model of your own."""


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@ADDRESS
@http_options
@click.option("--fresh", is_flag=True, help="Delete what an earlier run of this config left, and start over.")
@click.option("--detach", is_flag=True, help="Return once the coordinator runs.")
def run(
    config: str, overrides: tuple[str, ...], address: str | None, http: HttpOptions, fresh: bool, detach: bool
) -> None:
    """Run CONFIG from text to student; resumes where an earlier attempt ended."""
    from proxykd.config import load_config
    from services.cli.following import start_and_follow
    from services.cli.starting import Place, prepare_run

    start_and_follow(prepare_run(load_config(config, overrides), fresh), Place(address, http), detach)


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option("--prompts", required=True, metavar="FILE|DIR|hf:NAME", help="JSONL (also .gz) or Parquet of prompts.")
@click.option("--out", required=True, metavar="DATASET", help="A folder, or s3://bucket/prefix; goes on where it is.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many prompts.")
@click.option("--retry", metavar="KINDS", help="rejected, failed or both: ask again what is apart for that.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="That ask, on Ray.")
@ADDRESS
@click.option("--dry-run", is_flag=True, help="Say what it would take, in tokens, money and time; send nothing.")
def collect(
    config: str,
    overrides: tuple[str, ...],
    prompts: str,
    out: str,
    limit: int | None,
    retry: str | None,
    workers: int,
    address: str | None,
    dry_run: bool,
) -> None:
    """Ask the teacher of CONFIG for completions of PROMPTS; never twice for the same."""
    from proxykd.collection.dataset import flags_to_retry
    from proxykd.config import load_collect_config
    from services.cli.collect import WorkerOptions
    from services.cli.collect import collect as collect_dataset

    options, again = WorkerOptions(workers, address), flags_to_retry(retry)
    collect_dataset(load_collect_config(config, overrides), prompts, out, options, limit, dry_run, again)


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@ADDRESS
@http_options
@click.option("--fresh", is_flag=True, help="Delete what an earlier attempt at this study left, and start over.")
@click.option("--detach", is_flag=True, help="Return once the coordinator runs.")
def study(
    config: str, overrides: tuple[str, ...], address: str | None, http: HttpOptions, fresh: bool, detach: bool
) -> None:
    """Compare methods: every arm of CONFIG with every seed, sharing what they can; resumes like a run."""
    from proxykd.study.studies import load_study
    from services.cli.following import start_and_follow
    from services.cli.starting import Place, prepare_study

    start_and_follow(prepare_study(load_study(config, overrides), fresh), Place(address, http), detach)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@ADDRESS
@http_options
@click.option("--detach", is_flag=True, help="Return once the coordinator runs.")
def resume(run_directory: str, address: str | None, http: HttpOptions, detach: bool) -> None:
    """Go on with RUN where it ended."""
    from actors.hosting.status import Work
    from services.cli.following import start_and_follow
    from services.cli.starting import Place

    start_and_follow(Work.at(run_directory), Place(address, http), detach)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--adapter", default="aligned", show_default=True, help="Who answers where a request names nobody.")
@ADDRESS
@http_options
def serve(run_directory: str, adapter: str, address: str | None, http: HttpOptions) -> None:
    """Serve the proxy of a finished RUN, until Ctrl-C."""
    from proxykd.runs.run_directory import RunDirectory
    from services.cli.serving import serve_run

    serve_run(RunDirectory.open(run_directory), adapter, address=address, http=http)


@main.command("serve-student")
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--fall-back", metavar="CONFIG", type=click.Path(dir_okay=False), help="A teacher for doubtful prompts.")
@OVERRIDES
@click.option("--defer", type=click.FloatRange(0, 1), help="Share of traffic like the certificate's that it answers.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Or the doubt from which on it does.")
@click.option("--with-proxy", is_flag=True, help="The doubt by the proxy's log-probs too, in an engine of its own.")
@click.option("--keep-answers", metavar="FILE", type=click.Path(dir_okay=False), help="Keep what it answers there.")
@ADDRESS
@http_options
def serve_student(
    run_directory: str,
    fall_back: str | None,
    overrides: tuple[str, ...],
    defer: float | None,
    threshold: float | None,
    with_proxy: bool,
    keep_answers: str | None,
    address: str | None,
    http: HttpOptions,
) -> None:
    """Serve the student of a finished RUN, until Ctrl-C.

    With --fall-back, prompts that it is in doubt about are answered by the teacher of CONFIG, within its budget, which
    takes a certificate (proxykd certify); --set is for CONFIG.
    """
    from proxykd.config import load_collect_config
    from proxykd.runs.run_directory import RunDirectory
    from services.cli.student_serving import FallBackOptions
    from services.cli.student_serving import serve_student as serve

    options = None
    if fall_back is not None:
        if (defer is None) == (threshold is None):
            raise ConfigError("--fall-back takes either --defer SHARE or --threshold DOUBT: whom the teacher answers")
        config = load_collect_config(fall_back, overrides)
        options = FallBackOptions(config, defer, threshold, with_proxy, keep_answers)
    elif overrides or with_proxy or (defer, threshold, keep_answers) != (None, None, None):
        raise ConfigError(
            "--set, --defer, --threshold, --with-proxy and --keep-answers are for a teacher; name it with --fall-back"
        )
    serve(RunDirectory.open(run_directory), options, address=address, http=http)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--models", metavar="NAMES", help="Of student, sft, proxy and base, by commas; default: what RUN has.")
@click.option("--once", metavar="PROMPT", help="Print the replies to this, and leave.")
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0: the likeliest.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of a reply.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: the run's.")
@click.option("--page", is_flag=True, help="In a browser on this machine instead; until Ctrl-C.")
@click.option(
    "--http-port", type=click.IntRange(1, 65535), help="Of the page; default: 8200, or the next that is free."
)
def chat(
    run_directory: str,
    models: str | None,
    once: str | None,
    temperature: float,
    max_tokens: int,
    dtype: str | None,
    page: bool,
    http_port: int | None,
) -> None:
    """Talk to the models of a finished RUN, side by side: student, SFT student, proxy and base.

    Prompts come from the terminal, or a line each from a pipe. Needs no Ray.
    """
    from actors.cluster.http_options import HttpOptions
    from proxykd.models.speaker import Sampling
    from services.cli.chat import Chosen, chat_in_terminal, chat_on_page

    if page and once is not None:
        raise ConfigError("--once is answered in the terminal; leave out --page")
    names = None if models is None else tuple(name.strip() for name in models.split(","))
    chosen, sampling = Chosen(run_directory, names, dtype), Sampling(temperature, max_tokens)
    if page:
        chat_on_page(chosen, sampling, HttpOptions(port=http_port or 8200, or_next=http_port is None))
    else:
        chat_in_terminal(chosen, sampling, once)


@main.command()
@click.argument("runs_dir", metavar="[RUNS_DIR|RUN]", default="runs", type=click.Path(file_okay=False))
@functools.partial(http_options, port=8100)
def dashboard(runs_dir: str, http: HttpOptions) -> None:
    """Show all runs and studies in RUNS_DIR (default: runs), or one RUN, in a browser, live; until Ctrl-C.

    A run that is at work shows itself too, at /dashboard/ beside its routes.
    """
    from services.dashboard.app import serve_dashboard

    serve_dashboard(runs_dir, http)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--watch", is_flag=True, help="Go on showing it until it ends; Ctrl-C leaves the run as it is.")
def status(run_directory: str, as_json: bool, watch: bool) -> None:
    """Say where RUN stands: from storage, and whether its coordinator is alive."""
    from actors.hosting.status import Work, run_status
    from services.cli.terminal import status_lines, watch_run

    work = Work.at(run_directory)
    found = run_status(work)
    click.echo(found.model_dump_json(indent=1) if as_json else "\n".join(status_lines(found)))
    if watch and found.alive:
        watch_run(work)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--now", is_flag=True, help="Do not wait for the shard or step in hand: it will be done again.")
@click.option("--serving", is_flag=True, help="End what serves a finished RUN on this machine.")
def stop(run_directory: str, now: bool, serving: bool) -> None:
    """Stop RUN once the shard or step in hand is whole; what is finished stays, `resume` goes on."""
    from actors.hosting.status import Work
    from services.cli.stopping import stop_run, stop_serving

    if serving:
        stop_serving(Work.at(run_directory))
        click.echo("no longer served")
        return
    stop_run(Work.at(run_directory), now)
    click.echo(f"stopped; go on with: proxykd resume {run_directory}")


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--html", metavar="FILE", type=click.Path(dir_okay=False), help="Write the run's page there instead.")
def report(run_directory: str, html: str | None) -> None:
    """Print a finished RUN's table, or a study's; or write the page of a run, finished or not, as one file."""
    from actors.hosting.status import Work

    work = Work.at(run_directory)
    if html is None:
        from services.cli.report_tables import print_report

        print_report(work)
        return
    if work.study is not None:
        raise RunError(f"{work.run.id} is a study, whose page is {work.study.report.with_suffix('.html')}")
    from services.dashboard.pages import write_report_page

    click.echo(f"wrote {write_report_page(work.run, Path(html))}")


@main.command()
@click.argument("model")
@click.option("--tasks", required=True, help="bbh, agieval, arc_challenge, csqa, gsm8k, mmlu, or DIR's own, by commas.")
@click.option(
    "--data-dir", metavar="DIR", type=click.Path(file_okay=False), help="Of <task>.jsonl[.gz]; default: the hub."
)
@click.option("--limit", type=click.IntRange(min=2), help="At most so many questions a task, drawn at random.")
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option("--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: the run's, or the model's own.")
@click.option("--max-length", default=2048, show_default=True, help="Tokens of prompt and answer together.")
@click.option("--chat-template", metavar="NAME|FILE", help="For a model that has none.")
@click.option(
    "--output",
    type=click.Path(file_okay=False),
    help="Default: benchmarks/ in the run or study, or evaluations/<model>.",
)
def evaluate(
    model: str,
    tasks: str,
    data_dir: str | None,
    limit: int | None,
    seed: int,
    engine: str,
    dtype: str | None,
    max_length: int,
    chat_template: str | None,
    output: str | None,
) -> None:
    """Benchmark MODEL (a folder, a hub name), or the proxies and students of a RUN or a STUDY.

    Zero-shot, greedy, generated answers.
    Goes on where an earlier attempt ended. Every generation is kept for inspection.
    """
    from proxykd.evaluation.benchmarks import parse_tasks
    from services.cli.evaluate import Settings
    from services.cli.evaluate import evaluate as evaluate_model

    names = tuple(parse_tasks(tasks, Path(data_dir) if data_dir else None))
    settings = Settings(names, data_dir, limit, seed, engine, dtype, max_length, chat_template)
    evaluate_model(model, settings, output)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--to", "form", required=True, metavar="FORMAT", help="safetensors, lora, gguf-f16 or gguf-q8_0.")
@click.option("--sft", "by_sft", is_flag=True, help="The student by SFT, in place of the distilled one.")
@click.option("--out", type=click.Path(file_okay=False), help="Default: export/<format>/ in the run.")
@click.option("--push", "repository", metavar="OWNER/NAME", help="Then upload it to the hub, by the token in HF_TOKEN.")
@click.option("--public", is_flag=True, help="For all to see, where --push makes the repository.")
def export(run_directory: str, form: str, by_sft: bool, out: str | None, repository: str | None, public: bool) -> None:
    """Write RUN's student in another FORMAT, once it is shown to be the student still."""
    from services.cli.export import export_student

    export_student(run_directory, form, by_sft, out, repository, public)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--prompts", metavar="FILE|DIR|hf:NAME", help="Held-out prompts of your own; default: the test slice.")
@click.option("--judge", metavar="CONFIG", type=click.Path(dir_okay=False), help="Who compares the answers.")
@OVERRIDES
@click.option("--teacher", metavar="CONFIG", type=click.Path(dir_okay=False), help="Asks it; default: the run's own.")
@click.option("--margin", type=click.FloatRange(0.005, 0.5), default=0.05, show_default=True)
@click.option("--by", multiple=True, metavar="COLUMN", help="A verdict for each of its values.")
@click.option("--gold", metavar="COLUMN", help="Right answers, or /regular expressions/, in a judge's place.")
@click.option("--beside", metavar="NAMES", help="Of sft, proxy and base, by commas, or none; default: what RUN has.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many prompts, drawn by their hash.")
@click.option("--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: the run's.")
@click.option("--max-length", type=click.IntRange(min=16), help="Tokens of prompt and answer; default: what they need.")
@click.option("--output", type=click.Path(file_okay=False), help="Default: certificate/ and report/ in RUN.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked; ask nothing.")
def certify(
    run_directory: str,
    prompts: str | None,
    judge: str | None,
    overrides: tuple[str, ...],
    teacher: str | None,
    margin: float,
    by: tuple[str, ...],
    gold: str | None,
    beside: str | None,
    limit: int | None,
    engine: str,
    dtype: str | None,
    max_length: int | None,
    output: str | None,
    dry_run: bool,
) -> None:
    """Say whether RUN's student can take over from its teacher, and for which prompts.

    Blind comparisons by a judge, or gold answers; --set is for the judge's config. Nothing is asked twice.
    """
    from proxykd.certification.prompts import Columns
    from proxykd.config import load_certify_config, load_collect_config
    from services.cli.certify import Settings, certify_run

    if overrides and judge is None:
        raise ConfigError(f"--set {overrides[0]} is for the judge's config; name it with --judge")
    names = None if beside is None else tuple(name.strip() for name in beside.split(",") if name.strip())
    settings = Settings(prompts, Columns(by, gold), margin, limit, names, engine, dtype, max_length, output, dry_run)
    certify_run(
        run_directory,
        settings,
        judge=load_certify_config(judge, overrides) if judge else None,
        teacher=load_collect_config(teacher) if teacher else None,
    )


@main.command()
@click.argument("file", metavar="CONFIG", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option("--device", help="A GPU by name (default a100-80g), or `this` for this machine's cores (CPU configs).")
@click.option("--records", type=int, help="Records of the corpus; default: counted, where it lies here.")
@click.option("--prompt-tokens", type=float, help="Mean tokens of a prompt; default: a quarter of its characters.")
@click.option("--completion-tokens", type=float, help="Mean tokens of a completion.")
def plan(
    file: str,
    overrides: tuple[str, ...],
    device: str | None,
    records: int | None,
    prompt_tokens: float | None,
    completion_tokens: float | None,
) -> None:
    """Say what CONFIG needs on machines you need not have: memory by its parts, tokens and hours a stage."""
    from proxykd.config import load_config
    from services.cli.plan import print_plan

    print_plan(load_config(file, overrides), device, records, prompt_tokens, completion_tokens)


@main.command()
@click.argument("file", metavar="CONFIG", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option("--records", type=click.IntRange(min=0), default=3, show_default=True, help="That are shown as text.")
def preview(file: str, overrides: tuple[str, ...], records: int) -> None:
    """Show what the models of CONFIG, a run's or a study's first, will see of its corpus: records as they are
    rendered, lengths, what is left out and cut, padding. Starts nothing."""
    from proxykd.config import is_study, load_config, read_yaml
    from services.cli.preview import print_preview

    if not is_study(read_yaml(file)):
        print_preview(load_config(file, overrides), records)
        return
    from proxykd.study.studies import load_study

    print_preview(load_study(file, overrides).expand()[0].config, records)


@main.group()
def config() -> None:
    """Look at configs without loading a model."""


@config.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
def check(file: str, overrides: tuple[str, ...]) -> None:
    """Validate FILE, a run's or a study's; print what would run and what it would need; look for the text it names."""
    from proxykd.config import is_study, load_config, read_yaml
    from proxykd.planning.describe import describe
    from proxykd.planning.text_checks import require_sources
    from proxykd.study.studies import load_study

    if not is_study(read_yaml(file)):
        run = load_config(file, overrides)
        click.echo("\n".join(describe(run)))
        require_sources([run])
        return
    study = load_study(file, overrides)
    runs = study.expand()
    sizes = f", {len(study.sizes.arms)} of them at {len(study.sizes.records)} sizes too," if study.sizes else ""
    counted = f"{len(study.arms)} arms by {len(study.seeds)} seeds{sizes}"
    click.echo(f"{study.id}: valid; {counted} are {len(runs)} runs; the first:")
    click.echo("\n".join(describe(runs[0].config)))
    require_sources(one.config for one in runs)


@config.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
def show(file: str, overrides: tuple[str, ...]) -> None:
    """Print FILE with every default filled in, as YAML."""
    import yaml

    from proxykd.config import load_config

    click.echo(yaml.safe_dump(load_config(file, overrides).model_dump(mode="json"), sort_keys=False), nl=False)


@config.command()
def reference() -> None:
    """Print every key with its type, its default and what it is, as Markdown."""
    from proxykd.config.reference import configuration_page
    from proxykd.study.studies import StudyConfig

    click.echo(configuration_page(StudyConfig), nl=False)


if __name__ == "__main__":
    main(prog_name=Path(sys.argv[0]).name)
