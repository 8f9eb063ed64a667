"""Every way to name a private address, directly, by a redirect and by a name that changes its mind.

To be run in a network namespace (`other_rows.guard`): 93.184.216.34 is a web server there, and everything private
answers too, on port 80, and remembers who asked. Prints a JSON list: "refused", "fine" (the public server answered), or
which private server was reached.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from ingest.http import resolver
from ingest.http.fetcher import FetchConfig, Fetcher
from ingest.lists.source import quote
from ingest.record import Link

PUBLIC = "93.184.216.34"
HOSTS = (
    *("127.0.0.1", "127.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
    *("127.0.0.1.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
    *(
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:0:0:0:0:80ff:fffe]",
        "[fe80::1%25lo]",
        "[fe80::1]",
        "localhost",
    ),
    *("LOCALHOST", "localhost.", "10.9.9.9", "169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1", "ⓛocalhost", f"{PUBLIC[:-1]}5:8080", f"127.0.0.1:80@{PUBLIC}"),
    *(f"{PUBLIC}@127.0.0.1", f"{PUBLIC}#@127.0.0.1", f"{PUBLIC}\\@127.0.0.1", f"127.0.0.1%2f@{PUBLIC}", "224.0.0.1"),
    *("255.255.255.255", "100.64.0.1", "198.18.0.1", "192.0.0.8", "192.88.99.1", "[ff02::1]", "[fc00::1]", "[3fff::1]"),
    *("[5f00::1]", "[2001:db8::1]", "[100::1]"),
)
TARGETS = (
    *("file:///etc/passwd", "gopher://127.0.0.1:80/_GET%20/", "ftp://127.0.0.1:80/x", "dict://127.0.0.1:80/"),
    *("//127.0.0.1/", "http:127.0.0.1", "\\\\127.0.0.1\\", "data:image/png;base64,AAAA", "ldap://127.0.0.1:80"),
    *("scp://127.0.0.1:80/x", "smb://127.0.0.1/x", "ws://127.0.0.1/"),
)
NAMES = 100
reached: dict[str, list[str]] = defaultdict(list)  # by the number in the path


class Server(ThreadingHTTPServer):
    private = True
    daemon_threads = True


class Server6(Server):
    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.private:  # type: ignore[attr-defined]
            reached[self.path.rpartition("/n")[2]].append(f"{self.server.server_address} by {self.path}")
        status, target = 200, ""
        if self.path.startswith("/to?"):
            status, target = 302, unquote(self.path[4:])
        elif self.path == "/robots.txt":
            status = 404
        self.send_response(status)
        if target:
            self.send_header("Location", target)
        body = b"secret" if status == 200 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_CONNECT = do_GET


def serve(kind: type[Server], address: str, port: int, private: bool) -> None:
    server = kind((address, port), Handler)
    server.private = private
    threading.Thread(target=server.serve_forever, daemon=True).start()


def urls() -> list[str]:
    found = [f"http://{host}/n{number}" for number, host in enumerate(HOSTS)]
    found += [f"http://{PUBLIC}/to?http://{host}/n{len(found) + number}" for number, host in enumerate(HOSTS)]
    return found + [f"http://{PUBLIC}/to?{target}" for target in TARGETS]


def outcomes(links: list[str]) -> list[str]:
    config = FetchConfig(retries=0, connect_timeout=2, deadline=8, per_host_rate=0, outage_limit=0, backoff=0.1)
    fetcher = Fetcher(config)
    try:
        found = fetcher.run(iter([Link(f"k{row}", quote(url), (), row) for row, url in enumerate(links)]))
        got = {each.link.row: each for each in found if each is not None}
    finally:
        fetcher.close()
    return ["fine" if got[row].body is not None else "refused" for row in range(len(links))]


def main() -> None:
    socket.getfqdn = lambda name="": "here"  # no name server in here
    for address in ("127.0.0.1", "10.9.9.9", "169.254.169.254"):
        serve(Server, address, 80, private=True)
    serve(Server6, "::1", 80, private=True)
    serve(Server, PUBLIC, 80, private=False)
    serve(Server, f"{PUBLIC[:-1]}5", 8080, private=True)  # another port than the web's
    serve(Server, "127.0.0.1", 3128, private=True)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        os.environ[name] = "http://127.0.0.1:3128"
    listed = urls()
    found = outcomes(listed)
    turns: dict[str, int] = defaultdict(int)

    def rebinding(name: str) -> resolver.Answer:
        turns[name] += 1
        return resolver.Answer(name, (PUBLIC,) if turns[name] == 1 else ("127.0.0.1",))

    resolver.look_up = rebinding
    found += outcomes([f"http://rebind{n}.example/n{len(listed) + n}" for n in range(NAMES)])
    resolver.look_up = lambda name: resolver.Answer(name, ("127.0.0.1", "10.9.9.9", "169.254.169.254", "::1"))
    found += outcomes([f"http://private{n}.example/n{len(listed) + NAMES + n}" for n in range(NAMES)])
    for number, who in reached.items():
        at = int(number) if number.isdigit() and int(number) < len(found) else 0
        found[at] = f"reached {who[0]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
