"""A server over stdio that breaks rules, without the `mcp` package: `python raw.py MODE [PIDFILE]`."""

import json
import os
import signal
import subprocess
import sys
import time

mode = sys.argv[1]
schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
echo = {"name": "echo", "description": "Say the text.", "inputSchema": schema}


def send(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def tools(cursor: str | None) -> dict:
    match mode:
        case "many":
            return {"tools": [{**echo, "name": f"echo{n}"} for n in range(10_000)]}
        case "endless":
            start = int(cursor or 0)
            page = [{**echo, "name": f"echo{n}"} for n in range(start, start + 1000)]
            return {"tools": page, "nextCursor": str(start + 1000)}
        case "empty pages":
            return {"tools": [], "nextCursor": "again"}
        case "twice":
            return {"tools": [echo, echo]}
        case "bad schema":
            return {"tools": [{**echo, "inputSchema": {"type": "object", "properties": {"text": {"type": "txet"}}}}]}
        case "no schema":
            return {"tools": [{**echo, "inputSchema": "none"}]}
        case "fetch":
            return {"tools": [{**echo, "inputSchema": {"type": "object", "$ref": "http://127.0.0.1:1/schema"}}]}
    return {"tools": [echo]}


def call(request: dict) -> None:
    text = request["params"]["arguments"].get("text", "")
    result = {"content": [{"type": "text", "text": text}]}
    match mode:
        case "rubbish":
            sys.stdout.write("\n{]\n[1, 2]\nnull\n" + "[" * 100_000 + "\n")
            sys.stdout.buffer.write(b"\xff\xfe not UTF-8\n")
            send({"id": "another", "result": result})
            send({"id": 12345, "error": {"code": 1, "message": "for nobody"}})
        case "surrogates":
            result = {"content": [{"type": "text", "text": "half \ud800, whole \ud83d\ude00"}]}
        case "no result":
            result = {"content": "none"}
        case "flood":
            for _ in range(2000):
                send({"method": "notifications/message", "params": {"level": "info", "data": "x" * 1000}})
        case "partial":
            sys.stdout.write('{"jsonrpc": "2.0", "id"')
            sys.stdout.flush()
            return
        case "close output":
            sys.stdout.flush()
            os.close(1)
            time.sleep(3600)
        case "endless line":
            while True:
                sys.stdout.write("x" * 65_536)
        case "ask":
            send({"id": 99, "method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 5}})
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    send({"id": request["id"], "result": result})


if mode == "stubborn":  # it and its child end by SIGKILL alone
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    with open(sys.argv[2], "w") as file:
        file.write(f"{os.getpid()} {child.pid}")

for line in sys.stdin:
    message = json.loads(line)
    if "method" not in message:
        continue
    match message["method"]:
        case "initialize":
            info = {"name": mode, "version": "0"}
            version = message["params"]["protocolVersion"]
            send({"id": message["id"], "result": {"protocolVersion": version, "capabilities": {"tools": {}},
                                                  "serverInfo": info}})  # fmt: skip
        case "tools/list":
            send({"id": message["id"], "result": tools((message.get("params") or {}).get("cursor"))})
        case "tools/call":
            call(message)
        case other if "id" in message:
            send({"id": message["id"], "error": {"code": -32601, "message": f"no method {other}"}})
while mode == "stubborn":
    time.sleep(3600)
