"""The REPL as people use it: in a pseudo-terminal, through a pipe, with one question, over a file."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import pytest
from grpo_math.chat.commands import COMMANDS
from grpo_math.chat.screen import Answer, Screen
from grpo_math.chat.session import Session, Settings, number, reasoning
from grpo_math.chat.workers import LocalModel, ModelSpec, Request
from grpo_math.data.prompts import Asking, build_conversation, build_prompt
from grpo_math.data.styles import STYLES
from grpo_math.errors import UsageError
from grpo_math.generation.backend import Sampling
from grpo_math.generation.openai_client import OpenAIServer

from conftest import ROOT, STARTER, kill_after, read_rows, script, write_jsonl
from terminal import Terminal, children, gone

REPL = "instruct_model_repl.py"
QUESTION = "What is 4 plus 5?"
SAMPLING = Sampling(n=1, temperature=0.0, top_p=0.5, top_k=0, max_tokens=12, seed=0, stop=())


def test_in_a_terminal_type_stream_interrupt_switch_save_leave(tmp_path, models):
    repl = Terminal([REPL, models / "roomy", models / "roomy", "--output", "all.jsonl"], tmp_path)
    repl.wait_for("is ready", 2)
    repl.wait_for("^>>>$")

    repl.type("What is 40 plus")
    repl.wait_for("plus$")
    repl.type("\x03")  # takes back the line
    repl.wait_for("^>>>$", 1)
    repl.enter("What is 4 plus 6?\x1b[D\x7f5")  # Left, Backspace, 5: line editing
    shown = repl.wait_for(r"tokens, [\d.]+ s .*tokens, [\d.]+ s$")
    assert re.search(r"^roomy +roomy-2$", shown, re.M), shown
    answers = re.search(r"^(\S.*\S) {3,}(\S.*\S)$", shown.split("roomy-2\n")[-1], re.M)
    assert answers[1] == answers[2]  # greedy, twice the same model

    repl.enter("/grade 9")
    repl.wait_for(r"roomy .*(right|wrong).*\n.*roomy-2 .*(right|wrong)")
    repl.enter(f"/add {models / 'endless'}")
    repl.wait_for("endless is ready")
    repl.enter("/max_tokens 90000")
    repl.wait_for("max_tokens 90000")

    # Three columns of 40; the two short answers are there while the third is being written, and then it is stopped.
    repl.enter("\x1b[A\x1b[A\x1b[A\x1b[A")  # Up: the question
    third, shown, deadline = set(), "", time.time() + 30
    while len(third) < 5 or not re.search(r"tokens, .*tokens, .*\.\.\.$", shown, re.M):  # it is drawn as it grows
        assert repl.read(1) and time.time() < deadline, (shown, third)
        third.add("".join(row[80:] for row in repl.rows()))
        shown = "\n".join(repl.rows())
    assert QUESTION in shown
    repl.type("\x03")
    repl.wait_for(r"tokens, .*tokens, .*interrupted, \d+ tokens")
    assert repl.process.poll() is None

    repl.enter("/models")
    pid = int(re.search(r"endless .*process (\d+)", repl.wait_for(r"endless .*process \d+"))[1])
    assert pid in children(repl.process.pid)
    repl.enter("/drop endless")
    repl.wait_for("dropped endless")
    assert gone({pid})

    # Another style; and a narrow terminal, where they stand one under the other.
    repl.enter("/style hash")
    repl.wait_for("roomy-2 +hash")
    repl.resize(60, 40)
    repl.enter(QUESTION)
    shown = repl.wait_for("tokens, ", 2)
    assert re.search(r"^roomy\n(.*\n)+?.*tokens, .*\nroomy-2\n(.*\n)+?.*tokens, ", shown, re.M), shown

    repl.enter("/save talk.jsonl")
    repl.wait_for("7 answers in talk.jsonl")

    # A model whose process is killed says so, and the other answers.
    repl.enter("/models")
    process = r"roomy-2 [^/]*process (\d+) "
    os.kill(int(re.search(process, repl.wait_for(process))[1]), signal.SIGKILL)
    repl.enter(QUESTION)
    repl.wait_for("tokens, ")
    repl.wait_for("its process ended with status -9; killed")
    repl.enter("/models")
    assert "roomy-2" not in repl.wait_for("roomy [^/]*process .*/")

    workers = children(repl.process.pid)
    repl.wait_for(r"^>>>\s*\Z")
    repl.type("\x04")
    assert repl.leave() == 0
    assert gone(workers)

    rows = read_rows(tmp_path / "talk.jsonl")
    assert [row["name"] for row in rows] == [
        *("roomy", "roomy-2"),
        *("roomy", "roomy-2", "endless"),
        *("roomy", "roomy-2"),
    ]
    assert [row["finish_reason"] for row in rows] == ["stop"] * 4 + ["interrupted"] + ["stop"] * 2
    assert {row["question"] for row in rows} == {QUESTION}
    assert rows[0]["gold"] == "9" and isinstance(rows[0]["strict"], bool) and "gold" not in rows[2]
    assert [row["settings"]["style"] for row in rows] == ["answer_tag"] * 5 + ["hash"] * 2
    saved = [row["completion"] for row in read_rows(tmp_path / "all.jsonl")]
    assert saved[:-1] == [row["completion"] for row in rows] and len(saved) == 8
    assert QUESTION in (tmp_path / "state/grpo_math/history").read_text()


def pipe(cwd, text, *arguments, **environment):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, ROOT / REPL, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, input=text, capture_output=True, text=True, timeout=120)


def test_through_a_pipe_with_a_model_that_does_not_load(tmp_path):
    """Commands, their refusals, and a conversation; a model that fails says why, and the other goes on."""
    shutil.copytree(STARTER, tmp_path / "broken", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "broken/model.safetensors").write_bytes(b"not weights")
    (tmp_path / "models.yaml").write_text(f"- {STARTER}\n- model: broken\n- {{model: ./nowhere, name: gone}}\n")
    lines = [
        *(QUESTION, "/grade 9", "/grade", "/temprature 1", "/temperature hot", "/temperature 1", "/seed 7"),
        *("/max_tokens 0", "/max_tokens 3000", QUESTION, "/max_tokens 12", QUESTION, QUESTION, "/style shout"),
        *(
            "/system You are terse.",
            "/system off",
            "/system style",
            "/drop 5",
            "/mode conversation",
            QUESTION,
            QUESTION,
        ),
        *("/reset", "/help", "/save talk.jsonl", "/save talk.jsonl", "/quit", QUESTION),
    ]
    done = pipe(tmp_path, "\n".join(lines), "--models", "models.yaml", FORCE_COLOR="1")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    for said in (
        "error: broken: not loaded: ",
        "error: ./nowhere: no such folder",
        "usage: /grade 42",
        "unknown command /temprature: did you mean /temperature?",
        "temperature 'hot': must be a number from 0 on",
        "max_tokens '0': must be a whole number from 1 on",
        "unknown prompt style 'shout'",
        "no model '5': there are starter_model",
        "talk.jsonl: exists already",
    ):
        assert said in done.stderr, said
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: broken")]) == 1
    for said in (
        "<answer>10</answer>\n  starter_model  wrong ('10' by answer_tag)",
        "seed 7",
        "system prompt: none",
        "/help",
        "5 answers in talk.jsonl",
    ):
        assert said in done.stdout, said
    rows = read_rows(tmp_path / "talk.jsonl")
    assert rows[1]["completion"] == rows[2]["completion"] and rows[1]["settings"]["seed"] == 7
    assert "history" not in rows[2] and rows[3]["history"] == []
    said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": rows[3]["completion"]}]
    assert rows[4]["history"] == said


def test_one_question_gives_the_evaluators_answers(tmp_path):
    """A model without a chat template is asked in plain text, as in evaluation. On standard output nothing else."""
    shutil.copytree(STARTER, tmp_path / "base", ignore=shutil.ignore_patterns("*.py", "chat_template*"))
    write_jsonl(tmp_path / "one.jsonl", [{"question": QUESTION, "answer": "9"}])
    asked = pipe(tmp_path, "", STARTER, "base", "-p", QUESTION, "--max_tokens", 30, "--output", "rows.jsonl")
    assert asked.returncode == 0, asked.stderr
    for model, saved in zip((STARTER, "base"), read_rows(tmp_path / "rows.jsonl"), strict=True):
        scored = [
            "evaluate_gsm8k_no_vllm.py",
            model,
            "--data",
            "one.jsonl",
            "--max_tokens",
            30,
            "--name",
            saved["name"],
        ]
        assert script(scored, tmp_path).returncode == 0
        (row,) = read_rows(tmp_path / f"evals/{saved['name']}.jsonl")
        assert (saved["completion"], saved["answer"]) == (row["completion"], row["extracted"])
    assert asked.stdout == f"[starter_model]\n<answer>10</answer>\n\n[base]\n{saved['completion']}\n\n"


def test_a_file_of_questions_is_resumed(tmp_path):
    """Killed, and torn in mid-row, it ends with the same sampled answers, each once."""
    sums = {f"What is {a} plus {b}?": str(a + b) for a in range(15) for b in range(15)}
    write_jsonl(tmp_path / "in.jsonl", [{"question": question, "answer": answer} for question, answer in sums.items()])
    command = [REPL, STARTER, "--input", "in.jsonl", "--temperature", "1", "--max_tokens", "12", "--output"]
    whole = script([*command, "whole.jsonl"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    wanted = read_rows(tmp_path / "whole.jsonl")
    assert {row["question"]: row["gold"] for row in wanted} == sums and len(wanted) == len(sums)
    assert {row["strict"] for row in wanted} == {True, False}

    part = tmp_path / "part.jsonl"
    kill_after([*command, "part.jsonl"], tmp_path, part, 64)
    kept = len(read_rows(part))
    with part.open("ab") as file:
        file.write(b'{"question": "torn')
    again = script([*command, "part.jsonl"], tmp_path)
    assert again.returncode == 0 and f"part.jsonl: {kept} of {len(sums)} answers are there" in again.stderr
    assert read_rows(part) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "-p", "x"], "none of the models could be loaded"),
        ([STARTER, "--input", "in.jsonl"], "--input: needs --output"),
        ([STARTER, "--input", "in.jsonl", "--output", "o.jsonl"], "in.jsonl, line 2: 'question' must be a text"),
        ([STARTER, "--models", "in.jsonl"], "--models in.jsonl: not a YAML file"),
        ([STARTER, "--models", "models.yaml"], "entry 1 must be a name, or `model:`"),
        ([STARTER, "--models", "gone.yaml"], "--models gone.yaml: No such file"),
        ([STARTER, "--backend", "magic"], "unknown backend 'magic': known ones are transformers, vllm, openai"),
        ([STARTER, "--style", "shout"], "unknown prompt style 'shout'"),
        ([STARTER, "--top_p", "0"], "top_p '0': must be a number above 0, at most 1"),
        ([STARTER, "--chat_template_kwargs", "[1]"], "chat_template_kwargs '[1]': must be JSON"),
        ([STARTER, "--chat_template_kwargs", "{no"], "chat_template_kwargs '{no': must be JSON"),
        ([STARTER, "--seed", "-1"], "seed '-1': must be a whole number from 0 on"),
        ([STARTER, "--output", "/proc/nothing/x.jsonl"], "/proc/nothing/x.jsonl: cannot be written"),
        (["m", "--backend", "openai", "--base_url", "http://127.0.0.1:9/v1"], "no server answers"),
        (["m", "--backend", "openai"], "no server answers"),
    ],
)
def test_refusals(tmp_path, arguments, message):
    (tmp_path / "in.jsonl").write_text('{"question": "ok"}\n{"question": 5}\n')
    (tmp_path / "models.yaml").write_text("- {nme: x}\n")
    done = pipe(tmp_path, "", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "o.jsonl").exists()


def test_the_key_of_a_server_is_never_shown(tmp_path):
    """A server that repeats the key in its refusal, over a real socket."""
    seen = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            body = json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}\nsecond line"}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        arguments = ["m", "--backend", "openai", "--base_url", url, "-p", "x", "--output", "o.jsonl"]
        done = pipe(tmp_path, "", *arguments, OPENAI_API_KEY="sk-very-secret")
        server.shutdown()
    assert seen == ["Bearer sk-very-secret"]
    assert done.returncode == 2 and "status 401 (bad key Bearer [key] second line)" in done.stderr
    everything = done.stdout + done.stderr + "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert "very-secret" not in everything


def test_what_a_model_writes_does_not_steer_the_terminal(capsys):
    text = "\x1b]0;owned\x07\x1b[31mred\x1b[2J\x9b5A \x1bP+q\x1b\\ plain\b\r\u202e end"
    answers = [Answer("a\x1b[1m", text), Answer("b", text)]
    for shown in (answers[:1], answers):
        with Screen().watching(shown):
            pass
    said = capsys.readouterr().out
    assert "red" in said and "end" in said
    assert not [
        character for character in said if unicodedata.category(character) in ("Cc", "Cf") and character != "\n"
    ]


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@pytest.mark.parametrize(("chat", "system_role"), [(True, True), (True, False), (False, False)])
def test_one_question_is_asked_as_in_training(style, chat, system_role):
    turns = [{"role": "user", "content": " What?\n"}]
    assert build_conversation(style, turns, chat, system_role) == build_prompt(style, " What?\n", chat, system_role)


TALK = [{"role": role, "content": text} for role, text in (("user", "A?"), ("assistant", " a"), ("user", "B?"))]


@pytest.mark.parametrize(
    ("name", "system", "text"),
    [
        ("hash", "Be brief.", "Be brief.\n\nQuestion: A?\nAnswer: a\n\nQuestion: B?\nAnswer:"),
        ("hash", "", "Question: A?\nAnswer: a\n\nQuestion: B?\nAnswer:"),
        ("r1_zero", "Be brief.", "Be brief.\nUser: A?\nAssistant: <think> a\nUser: B?\nAssistant: <think>"),
    ],
)
def test_a_conversation_as_plain_text(name, system, text):
    assert build_conversation(replace(STYLES[name], system=system), TALK, chat=False) == text


@pytest.mark.parametrize(
    ("system", "system_role", "first"),
    [
        ("Be brief.", True, [{"role": "system", "content": "Be brief."}, TALK[0]]),
        ("Be brief.", False, [{"role": "user", "content": "Be brief.\n\nA?"}]),
        ("", True, TALK[:1]),
        ("", False, TALK[:1]),
    ],
)
def test_a_conversation_in_messages(system, system_role, first):
    style = replace(STYLES["hash"], system=system)
    assert build_conversation(style, TALK, chat=True, system_role=system_role) == [*first, *TALK[1:]]


@pytest.mark.parametrize(
    ("completion", "before"),
    [
        ("4 + 5 = 9\n#### 9", "4 + 5 = 9"),
        ("4 + 5 = 9\n<answer>9</answer> Bye", "4 + 5 = 9"),
        ("First <answer>8</answer>, no: <answer>9</answer>", "First <answer>8</answer>, no:"),
        ("<think>4 and 5\nmake 9</think>\\boxed{9}", "4 and 5\nmake 9"),
        ("So the answer is 9.", "So the answer is 9."),
        ("", ""),
    ],
)
def test_reasoning_is_what_stands_before_the_answer(completion, before):
    assert reasoning(completion) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("seed", "1.5"),
        ("top_p", "0"),
        ("top_p", "1.1"),
        ("top_p", "nan"),
    ],
)
def test_numbers_that_no_backend_could_use(name, text):
    with pytest.raises(UsageError, match=name):
        number(name, text)


def chunk(text, reason=None, **more):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, 'finish_reason': reason}], **more})}\n\n"


@contextlib.contextmanager
def serving(stream, pause=0.0, kind="text/event-stream", cut=False):
    """A server whose model `m` answers whatever it is asked with these pieces; `asked` are the bodies it got."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            listed = b'{"data": [{"id": "m"}, {"id": "n"}]}'
            self.begin(listed, "Content-Length", str(len(listed)))

        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.begin(b"", "Transfer-Encoding", "chunked")
            with contextlib.suppress(OSError):
                for text in stream:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(text.encode()), text.encode()))
                    time.sleep(pause)
                if not cut:
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def begin(self, data, header, value):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header(header, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


HALF = [chunk("Ann has 3 pens, "), chunk("so 3 + 4 ")]
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("stream", "kind", "cut", "said"),
    [
        ([*HALF, 'data: {"error": {"message": "the engine is dead"}}\n\n', DONE], "", False, "the engine is dead"),
        ([*HALF, 'data: {"error": "overloaded"}\n\n'], "", False, "overloaded"),
        ([*HALF, 'event: error\ndata: {"message": "late"}\n\n', DONE], "", False, "late"),
        ([*HALF, 'data: {"object": "error", "message": "bad", "code": 400}\n\n', DONE], "", False, "bad"),
        ([*HALF, 'data: {"detail": "no room"}\n\n'], "", False, "no room"),
        ([chunk("9", "stop"), 'data: {"error": {"message": "after all"}}\n\n', DONE], "", False, "after all"),
        ([*HALF, DONE], "", False, "broke off (after 25 characters, finish_reason none)"),
        (HALF, "", False, "broke off"),
        ([], "", False, "broke off (after 0 characters"),
        (HALF, "", True, "broke off"),
        ([*HALF, chunk("", "content_filter"), DONE], "", False, "finish_reason content_filter"),
        ([*HALF, chunk("", "abort"), DONE], "", False, "finish_reason abort"),
        ([*HALF, 'data: {"choices": [{"del'], "", False, "broke off"),
        ([*HALF, "data: null\n\n", DONE], "", False, "broke off"),
        (["<!DOCTYPE html>\n<html><body>Bad gateway</body></html>"], "text/html", False, "sent no stream of events"),
        (['{"choices": [{"message": {"content": "9"}}]}'], "application/json", False, "sent no stream of events"),
        (['{"error": {"message": "no such thing"}}'], "application/json", False, "no such thing"),
    ],
)
def test_half_an_answer_of_a_server_is_an_error(stream, kind, cut, said):
    with serving(stream, kind=kind or "text/event-stream", cut=cut) as (url, _):
        server = OpenAIServer("m", url)
        with pytest.raises(UsageError) as error:
            server.complete([{"role": "user", "content": QUESTION}], SAMPLING, {}, lambda _: True)
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).count(url) == 1


@pytest.mark.parametrize(
    ("stream", "text", "tokens", "reason"),
    [
        ([chunk("4 + 5 = 9"), chunk("", "stop"), DONE], "4 + 5 = 9", None, "stop"),
        ([chunk("9", "length", usage={"completion_tokens": 7})], "9", 7, "length"),
        (
            [": busy\n\n", chunk("9", "stop"), 'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n'],
            "9",
            3,
            "stop",
        ),
        (
            ['data: {"choices": [{"delta": {"reasoning": "4, 5"}}]}\n\n', chunk("9", "stop", usage=None), DONE],
            "<think>4, 5</think>9",
            None,
            "stop",
        ),
        ([chunk("<think>"), chunk("4, 5"), chunk("</think>9", "stop"), DONE], "<think>4, 5</think>9", None, "stop"),
    ],
)
def test_whole_answers_of_a_server(stream, text, tokens, reason):
    with serving(stream) as (url, asked):
        served = OpenAIServer("m", url).complete(TALK[:1], SAMPLING, {"loud": True}, lambda _: True)
    assert (served.text, served.tokens, served.finish_reason) == (text, tokens, reason)
    assert asked[0]["chat_template_kwargs"] == {"loud": True} and asked[0]["top_p"] == 0.5


def test_a_silent_server_can_be_stopped():
    with serving([*HALF, chunk("", "stop")], pause=5) as (url, _):
        started = time.monotonic()
        served = OpenAIServer("m", url).complete(TALK[:1], SAMPLING, {}, lambda text: not text)
        assert served.text == "Ann has 3 pens, " and time.monotonic() - started < 4


def test_what_broke_off_is_neither_saved_nor_graded(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"question": QUESTION, "answer": "9"}] * 3)
    with serving([*HALF, DONE]) as (url, _):
        server = ["m", "--backend", "openai", "--base_url", url, "--output", "rows.jsonl"]
        one = pipe(tmp_path, "", *server, "-p", QUESTION)
        talk = pipe(tmp_path, f"{QUESTION}\n/grade 9\n", *server)
        file = pipe(tmp_path, "", *server, "--input", "in.jsonl")
    assert (one.returncode, talk.returncode, file.returncode) == (2, 0, 2)
    assert "error: m: " in one.stderr and "nothing has been answered yet" in talk.stdout
    assert "run the same command again" in file.stderr and not (tmp_path / "rows.jsonl").read_text()


def test_a_server_without_token_counts(tmp_path):
    """One question's failure leaves the others of its batch; what is there is not asked again."""
    write_jsonl(tmp_path / "in.jsonl", [{"question": QUESTION}, {"question": "What is 1 plus 1?"}])
    with serving([chunk("9", "stop")]) as (url, asked):
        server = ["m", "--backend", "openai", "--base_url", url, "--input", "in.jsonl", "--output", "rows.jsonl"]
        assert pipe(tmp_path, "", *server).returncode == 0
        assert [row["tokens"] for row in read_rows(tmp_path / "rows.jsonl")] == [None, None]
        assert pipe(tmp_path, "", *server).returncode == 0 and len(asked) == 2
        assert pipe(tmp_path, "", *server, "--top_p", "0.9").returncode == 0 and len(asked) == 4
    assert Answer("m", "9", None, 1.0, "stop").foot() == "unknown tokens, 1.0 s"


def test_a_second_model_of_the_same_name_is_asked(tmp_path):
    """Rows go by weights, prompt and settings: other weights, another template, a question asked twice."""
    for folder in ("a", "b"):
        shutil.copytree(STARTER, tmp_path / folder / "same", ignore=shutil.ignore_patterns("*.py"))
    config = tmp_path / "b/same/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    write_jsonl(tmp_path / "in.jsonl", [{"question": text} for text in (QUESTION, "What is 7 plus 8?", QUESTION)])

    def rows_after(model, *flags):
        done = script(
            [REPL, model, "--input", "in.jsonl", "--output", "rows.jsonl", "--max_tokens", 9, *flags], tmp_path
        )
        assert done.returncode == 0, done.stderr
        return read_rows(tmp_path / "rows.jsonl")

    assert len(rows_after("a/same")) == 3
    rows = rows_after("b/same")
    assert len(rows) == 6 and {row["name"] for row in rows} == {"same"} and len({row["key"] for row in rows}) == 6
    write_jsonl(tmp_path / "rows.jsonl", [*rows[:2], *rows[3:]])  # the repeated question has one answer left
    assert rows_after(tmp_path / "a/same") == [*rows[:2], *rows[3:], {**rows[2], "model": str(tmp_path / "a/same")}]
    template = tmp_path / "a/same/chat_template.jinja"
    template.write_text(template.read_text().replace("You", "Now you", 1) + " ")
    assert len(rows_after("a/same")) == 9


def test_a_key_is_of_all_that_an_answer_depends_on(tmp_path):
    shutil.copytree(STARTER, tmp_path / "m", ignore=shutil.ignore_patterns("*.py"))
    template = tmp_path / "m/chat_template.jinja"
    template.write_text(template.read_text() + "{% if loud %}!{% endif %}")
    spec = ModelSpec(str(tmp_path / "m"), "m")
    style = STYLES["answer_tag"]
    base = Request([TALK[:1]], Asking(style), SAMPLING, identify=True)
    requests = [
        base,
        replace(base, conversations=[TALK]),
        replace(base, asking=Asking(STYLES["hash"])),
        replace(base, asking=Asking(replace(style, system="Be brief."))),
        replace(base, asking=Asking(style, {"loud": True})),
        *(
            replace(base, sampling=replace(SAMPLING, **{name: 3}))
            for name in ("temperature", "top_k", "max_tokens", "seed")
        ),
        replace(base, sampling=replace(SAMPLING, top_p=0.25)),
    ]
    model = LocalModel(spec)
    keys = [model.answer(request, lambda _: True)[0].text for request in [*requests, base]]
    model.spec = replace(spec, dtype="bfloat16")
    keys.append(model.answer(base, lambda _: True)[0].text)
    assert keys[0] == keys[len(requests)] and len(set(keys)) == len(requests) + 1


@pytest.mark.parametrize(
    ("chosen", "own", "template"),
    [
        (None, None, {"enable_thinking": False}),
        (None, {"enable_thinking": True}, {"enable_thinking": True}),
        ({}, {"enable_thinking": True}, {}),
    ],
)
def test_a_model_is_asked_as_it_was_trained(tmp_path, chosen, own, template):
    """Style and template arguments come from the run, unless they are given for the model, or for all."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    record = {"prompt": "xml", "arguments": {"chat_template_kwargs": {"enable_thinking": False}}}
    (run / "run.json").write_text(json.dumps(record))
    session = Session(Settings(chat_template_kwargs=chosen), ModelSpec(""))
    trained = session.settled(ModelSpec(str(run), chat_template_kwargs=own), [])
    base = session.settled(ModelSpec("base/model", backend="openai"), [trained])
    session.workers = [SimpleNamespace(spec=trained), SimpleNamespace(spec=base)]
    assert session.asking(trained) == Asking(STYLES["xml"], template)
    assert session.asking(base) == Asking(STYLES["xml"], template)  # beside a run, a base is asked alike


@pytest.mark.parametrize("word", ["quit", "exit", "/quit", "/exit"])
def test_leaving(tmp_path, word):
    with serving([chunk("9", "stop")]) as (url, asked):
        done = pipe(tmp_path, f"{QUESTION}\n{word}\n{QUESTION}\n", "m", "--backend", "openai", "--base_url", url)
    assert done.returncode == 0 and done.stdout == "9\n" and len(asked) == 1


LONG = [chunk(f"word{number} and some more ") for number in range(400)]


@pytest.mark.parametrize(("before", "after"), [(60, 140), (80, 140), (140, 141), (60, 80)])
def test_widening_leaves_no_copies_and_help_breaks_no_word(tmp_path, before, after):
    with serving(LONG, pause=0.02) as (url, _):
        repl = Terminal([REPL, "m", "n", "--backend", "openai", "--base_url", url], tmp_path, before, 30)
        repl.enter("/help")
        shown = repl.wait_for("is a question to all").replace("\n", " ").split()
        for usage, purpose, _ in COMMANDS.values():
            assert {*usage.split(), *purpose.split()} <= {*shown}
        repl.enter(QUESTION)
        repl.wait_for(r"^n$" if before < 78 else r"^m +n$")
        repl.wait_for("word20 ")
        repl.resize(after, 30)
        deadline = time.time() + 1
        while time.time() < deadline:
            repl.read(0.1)
        shown = repl.wait_for(r"^m +n$" if after >= 78 else "^n$")
        assert len(re.findall(r"^m\b", shown, re.M)) == 1 and shown.count("word0 ") <= 2 and QUESTION in shown
        repl.type("\x03")
        shown = repl.wait_for("interrupted", 2)
        assert len(re.findall(r"^m\b", shown, re.M)) == 1 and shown.count("word0 ") == 2
        repl.enter("exit")
        assert repl.leave() == 0
