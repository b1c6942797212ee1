"""A browser without a window, driven over its DevTools pipe: standard library only.

  with Browser(program) as browser:
      page = browser.open(url)
      page.value("document.title")
      page.screenshot(path)
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

PATIENCE = 120  # seconds without any answer, after which a browser is taken for hung


class Browser:
    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="qt-browser-")
        command_read, self.command_write = os.pipe()
        self.reply_read, reply_write = os.pipe()

        def wire():  # the browser reads commands from 3 and writes replies to 4
            os.dup2(command_read, 13)
            os.dup2(reply_write, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        arguments = [program, "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-sandbox",
                     "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking",
                     "--disable-component-update", f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(arguments, close_fds=False, preexec_fn=wire, start_new_session=True,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(command_read)
        os.close(reply_write)
        self.pending = b""
        self.next_id = 1
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self.command_write)
        os.close(self.reply_read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def _receive(self):
        while b"\0" not in self.pending:
            if not select.select([self.reply_read], [], [], PATIENCE)[0]:
                raise RuntimeError("the browser does not answer")
            data = os.read(self.reply_read, 1 << 20)
            if not data:
                raise RuntimeError("the browser has ended")
            self.pending += data
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **parameters):
        number, self.next_id = self.next_id, self.next_id + 1
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.command_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            return answer["result"]

    def open(self, url, width=1400, height=1000, dark=False):
        return Page(self, url, width, height, dark)


class Page:
    def __init__(self, browser, url, width, height, dark):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, expression, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > end:
                raise RuntimeError(f"never true: {expression}")
            # The page's own clock sleeps: half a tenth of a second.
            self.value("new Promise((done) => setTimeout(done, 50))")

    def screenshot(self, path, whole=True):
        if whole:
            height = int(self.value("document.documentElement.scrollHeight"))
            width = int(self.value("document.documentElement.clientWidth"))
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, 12000), "scale": 1}
            data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        else:
            data = self.call("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self):
        """Errors of scripts and of the security policy so far."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(parameters["exceptionDetails"].get("exception", {}).get("description", str(parameters)))
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"] + " " + parameters["entry"].get("url", ""))
        return found

    def requests(self):
        return [event["params"]["request"]["url"] for event in self.browser.events
                if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"]
