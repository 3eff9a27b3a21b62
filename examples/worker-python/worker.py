"""A worker in Python: a device that is too hot blinks.

    naru worker add hot-python --url http://127.0.0.1:9001/ --hears 'device/+/telemetry'
"""
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Worker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            hot = json.loads(data).get("celsius", 0) > 30  # a pump has none, and is no concern of this worker
        except (ValueError, AttributeError, TypeError):
            return self.answer(400, b"no reading", "text/plain")  # dead, and listed with this reason
        if not hot:
            return self.answer(204)  # handled, and nothing follows
        # The message's id names the command: given twice, it is still one.
        device, id = self.headers["ce-narudevice"], self.headers["ce-id"]
        self.answer(200, json.dumps({
            "specversion": "1.0", "id": id, "source": "hot-python", "type": "blink",
            "subject": f"device.{device}.command.blink.{id}", "data": {"times": 3},
        }).encode(), "application/cloudevents+json")

    def answer(self, status, body=b"", kind=None):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as a container's first process it would not end by itself
    host, port = os.environ.get("LISTEN", "127.0.0.1:9001").rsplit(":", 1)
    ThreadingHTTPServer((host, int(port)), Worker).serve_forever()
