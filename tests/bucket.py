"""A bucket on this machine: the part of Google Cloud Storage's JSON interface that gcsfs and
tensorstore speak.

Objects with generations and preconditions, listing with prefix and delimiter, media, multipart and
resumable uploads, copies, batched deletions. In memory; one bucket, named `bucket`."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "bucket"


class Objects:
    """name -> (generation, content)."""

    def __init__(self):
        self.lock, self.held, self.generation, self.uploads = threading.RLock(), {}, 0, {}

    def put(self, name, content, query):
        with self.lock:
            if not self.fits(name, query):
                return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
            self.generation += 1
            self.held[name] = self.generation, content
            return 200, self.page(name)

    def fits(self, name, query):
        wanted, present = query.get("ifGenerationMatch"), self.held.get(name, (0,))[0]
        return wanted is None or int(wanted) == present

    def page(self, name):
        generation, content = self.held[name]
        return {
            "kind": "storage#object",
            "id": f"{NAME}/{name}/{generation}",
            "name": name,
            "bucket": NAME,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "storageClass": "STANDARD",
            "timeCreated": "2024-01-01T00:00:00.000Z",
            "updated": "2024-01-01T00:00:00.000Z",
        }

    def list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        with self.lock:
            for name in sorted(self.held):
                rest = name[len(prefix) :]
                if not name.startswith(prefix) or not query.get(
                    "startOffset", ""
                ) <= name < query.get("endOffset", "\U0010ffff"):
                    continue
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    items.append(self.page(name))
        return 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def delete(self, name, query):
        with self.lock:
            if name not in self.held:
                return 404, {"error": {"code": 404, "message": "No such object"}}
            if not self.fits(name, query):
                return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
            del self.held[name]
            return 204, None

    def copy(self, source, target, query):
        with self.lock:
            if source not in self.held:
                return 404, {"error": {"code": 404, "message": "No such object"}}
            return self.put(target, self.held[source][1], query)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, query = self.target()
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/[^/]+(/o(?:/(.+))?)?", path)
        if not match:
            return self.answer(404, {"error": {"code": 404, "message": path}})
        if not match[1]:
            return self.answer(200, {"kind": "storage#bucket", "name": NAME, "id": NAME})
        if not match[2]:
            return self.answer(*self.objects.list(query))
        name = unquote(match[2])
        with self.objects.lock:
            if name not in self.objects.held:
                return self.answer(
                    404, {"error": {"code": 404, "message": f"No such object: {NAME}/{name}"}}
                )
            generation, content = self.objects.held[name]
            page = self.objects.page(name)
        if not self.objects.fits(name, query):
            return self.answer(412, None)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304, None)
        if query.get("alt") != "media":
            return self.answer(200, page)
        headers = {
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(content)),
        }
        status = 200
        if (asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) and content:
            begin = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
            end = min(int(asked[2]) + 1, len(content)) if asked[1] and asked[2] else len(content)
            if begin >= len(content):
                return self.answer(416, None)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            status, content = 206, content[begin:end]
        self.send(status, content, "application/octet-stream", headers)

    def do_POST(self):
        path, query = self.target()
        body = self.body()
        if path.startswith("/batch/"):
            return self.batch(body)
        if path.startswith("/upload/"):
            return self.upload(query, body)
        if match := re.fullmatch(
            r"/storage/v1/b/[^/]+/o/(.+)/(?:rewriteTo/b/[^/]+|moveTo)/o/(.+)", path
        ):
            source, target = unquote(match[1]), unquote(match[2])
            status, page = self.objects.copy(source, target, query)
            if "/moveTo/" in path and status == 200:
                self.objects.delete(source, {})
            elif status == 200:
                page = {"kind": "storage#rewriteResponse", "done": True, "resource": page}
            return self.answer(status, page)
        self.answer(501, {"error": {"code": 501, "message": path}})

    def upload(self, query, body):
        kind = query["uploadType"]
        if kind == "resumable":
            with self.objects.lock:
                number = str(len(self.objects.uploads))
                self.objects.uploads[number] = (
                    query.get("name") or json.loads(body)["name"],
                    bytearray(),
                    query,
                )
            host = self.headers["Host"]
            return self.send(
                200,
                b"",
                "text/plain",
                {"Location": f"http://{host}/upload/{number}?uploadType=part&n={number}"},
            )
        if kind == "part":
            return self.part(query, body)
        if kind == "media":
            return self.answer(*self.objects.put(query["name"], body, query))
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        _, described, content, _ = re.split(rb"\r?\n?--" + re.escape(boundary), body)
        described, content = (
            re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (described, content)
        )
        self.answer(*self.objects.put(json.loads(described)["name"], content, query))

    def part(self, query, body):
        name, content, first = self.objects.uploads[query["n"]]
        content += body
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self.send(308, b"", "text/plain", {"Range": f"bytes=0-{len(content) - 1}"})
        self.answer(*self.objects.put(name, bytes(content), first))

    do_PUT = do_POST

    def do_DELETE(self):
        path, query = self.target()
        self.answer(*self.objects.delete(unquote(path.split("/o/", 1)[1]), query))

    def batch(self, body):
        parts = []
        for target in re.findall(r"DELETE (\S+) HTTP", body.decode()):
            name = unquote(urlsplit(target).path.split("/o/", 1)[1])
            status, _ = self.objects.delete(name, {})
            parts.append(
                f"Content-Type: application/http\r\n\r\nHTTP/1.1 {status} It\r\n\r\n{{}}\r\n"
            )
        content = "--part\r\n" + "--part\r\n".join(parts) + "--part--"
        self.send(200, content.encode(), "multipart/mixed; boundary=part")

    def target(self):
        parts = urlsplit(self.path)
        return parts.path, {
            name: values[-1]
            for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        }

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status, page):
        self.send(status, b"" if page is None else json.dumps(page).encode(), "application/json")

    def send(self, status, content, kind, headers=None):
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serve():
    """The address of a server with an empty bucket, for as long as the context lasts."""
    handler = type("OneBucket", (Handler,), {"objects": Objects()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
