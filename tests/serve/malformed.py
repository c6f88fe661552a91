"""Malformed HTTP by boofuzz against a running server: `malformed.py PORT SECONDS FOLDER`.

Whatever is sent, the server answers below 500 (or says that it will not: 501, 503, 505) or closes, and answers the next one who asks.
"""

import os, sys, time, urllib.request

port, seconds, folder = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
os.chdir(folder)  # boofuzz keeps its notes in the folder it runs in
from boofuzz import Block, Bytes, Delim, Group, Request, Session, Size, Static, String, Target, TCPSocketConnection

HONEST = (501, 503, 505)
counts, faults, began = {}, [], time.monotonic()


class Done(BaseException):
    """The time is up; boofuzz goes on after an Exception."""


def judge(target, fuzz_data_logger, session, *_, **__):
    """After each case: what was answered, whether the server still answers, and whether the time is up."""
    answer = session.last_recv or b""
    code = int(answer[9:12]) if answer.startswith(b"HTTP/1.") and answer[9:12].isdigit() else 0
    counts[code] = counts.get(code, 0) + 1
    if code >= 500 and code not in HONEST:
        faults.append((session.total_mutant_index, code, session.last_send[:200]))
    if sum(counts.values()) % 200 == 0:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10) as ready:
            assert ready.status == 200
    if time.monotonic() > deadline:
        raise Done


def request(name, method, path, headers, body):
    """A request of which every part is fuzzed in turn."""
    parts = [
        Group("method", values=[method, "GET", "PUT", "OPTIONS"]), Delim("space", " "), String("path", path), Delim("space-2", " "),
        String("version", "HTTP/1.1"), Static("line", "\r\n"), Static("host", "Host: "), String("host-value", "localhost"), Static("host-end", "\r\n"),
    ]
    for i, (key, value) in enumerate(headers):
        parts += [String(f"key-{i}", key), Delim(f"colon-{i}", ": "), String(f"value-{i}", value), Static(f"end-{i}", "\r\n")]
    parts += [Static("length", "Content-Length: "), Size("length-value", block_name="body", output_format="ascii", fuzzable=True), Static("length-end", "\r\n")]
    parts += [Static("close", "Connection: close\r\n\r\n"), Block("body", children=(Bytes("bytes", body),))]
    return Request(name, children=tuple(parts))


infer = b'{"inputs":[{"name":"images","shape":[1,32,32,3],"datatype":"UINT8","parameters":{"binary_data_size":3072}}]}'
requests = [
    request("infer", "POST", "/v2/models/cnn/infer", [("Inference-Header-Content-Length", str(len(infer)))], infer + bytes(3072)),
    request("raw", "POST", "/v2/models/cnn/infer", [("Inference-Header-Content-Length", "0"), ("Content-Encoding", "identity")], bytes(3072)),
    request("predict", "POST", "/v1/models/cnn:predict", [("Content-Type", "application/json")], b'{"instances":[[[[0.5,0.5,0.5]]]]}'),
    request("classify", "POST", "/classify?top=3", [("Content-Type", "image/png"), ("Transfer-Encoding", "identity")], b"\x89PNG\r\n\x1a\n"),
    request("meta", "GET", "/v2/models/cnn/versions/1", [("Authorization", "Bearer x")], b""),
]
cut = False
for i, each in enumerate(requests):
    deadline = began + seconds * (i + 1) / len(requests)
    session = Session(
        target=Target(connection=TCPSocketConnection("127.0.0.1", port, recv_timeout=5)), web_port=None, keep_web_open=False, fuzz_loggers=[],
        post_test_case_callbacks=[judge], receive_data_after_fuzz=True, ignore_connection_reset=True, ignore_connection_aborted=True,
        crash_threshold_request=10**9, crash_threshold_element=10**9, db_filename=os.path.join(folder, f"{i}.db"),
    )
    session.connect(each)
    try:
        session.fuzz()
    except Done:
        cut = True
done = "as many as the time allowed" if cut else "all there are"
for fault in faults:
    print("FAULT", *fault)
print(f"{'FAILED' if faults else 'ok '} {sum(counts.values())} malformed requests ({done}); answered: {dict(sorted(counts.items()))}, 0: closed without an answer")
sys.exit(bool(faults))
