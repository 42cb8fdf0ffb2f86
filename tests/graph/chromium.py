"""A tab of a headless Chromium, in which the tests open pages."""

import json
import os
import select
import shutil
import subprocess
import sys

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HELPERS = """
const settled = () => new Promise(done => setTimeout(done, 15));
const key = (name, on = document.body) => on.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const all = selector => [...document.querySelectorAll(selector)];
const node = name => all(".node").find(one => one.title === name);
const shows = id => document.getElementById(id)?.value ?? null;
const here = () => decodeURIComponent(location.hash);
"""
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab, driven by the DevTools protocol: JSON messages that end with a zero byte, on file descriptors 3 and 4."""

    def __init__(self, profile):
        read, self.out = os.pipe()
        self.source, write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        command = [sys.executable, "-c", LAUNCH, str(read), str(write), CHROMIUM, *flags, "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self.count, self.pending, self.events, self.session = 0, b"", [], {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.count += 1
        os.write(
            self.out, json.dumps({"id": self.count, "method": method, "params": params} | self.session).encode() + b"\0"
        )
        answer = self.until(lambda message: message.get("id") == self.count)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def until(self, wanted, seconds=30):
        while True:
            message, zero, rest = self.pending.partition(b"\0")
            if zero:
                self.pending, message = rest, json.loads(message)
                self.events.append(message)
                if wanted(message):
                    return message
                continue
            assert select.select([self.source], [], [], seconds)[0], f"no answer in {seconds} s"
            self.pending += os.read(self.source, 1 << 20)

    def open(self, path, fragment, width):
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self("Page.navigate", url=path.as_uri() + fragment)
        self.until(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script):
        expression = f"(async () => {{ {HELPERS} await settled(); {script} }})()"
        answer = self(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self):
        """Exceptions, errors and warnings of the console, and what the content policy refused."""
        found = [e["params"] for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        calls = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return found + [call for call in calls if call["type"] in ("error", "warning", "assert")]

    def close(self):
        self("Browser.close")
        self.process.wait(30)
        os.close(self.out)
        os.close(self.source)
