"""Each instance's flows in a file of its own: `whip proxy ... -- -s recipes/recorder.py`.

The files are `recorded/instance1.testdom.mitm` and so on; mitmproxy, `whip replay-across` and
`mitmdump -r` open them. `--set recorded=FOLDER` puts them elsewhere.
"""

from pathlib import Path

from mitmproxy import ctx, io


class Recorder:
    def __init__(self):
        self.files = {}

    def load(self, loader):
        loader.add_option("recorded", str, "recorded", "The folder for the instances' flows.")

    def keep(self, flow):
        instance = flow.metadata.get("whip.instance")
        if instance is None:
            return
        if instance not in self.files:
            folder = Path(ctx.options.recorded)
            folder.mkdir(parents=True, exist_ok=True)
            # An instance's name is checked to be one of DNS: it cannot lead out of the folder.
            self.files[instance] = (folder / f"{instance}.mitm").open("ab")
        file = self.files[instance]
        io.FlowWriter(file).add(flow)
        file.flush()

    response = error = tcp_end = tcp_error = keep

    def done(self):
        for file in self.files.values():
            file.close()


addons = [Recorder()]
