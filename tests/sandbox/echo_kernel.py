"""A Jupyter kernel that speaks no Python: it shouts back what it is told."""

from __future__ import annotations

from typing import Any

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel


class EchoKernel(Kernel):
    implementation = "echo"
    implementation_version = "1"
    banner = "echo"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

    def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> dict[str, object]:
        self.send_response(
            self.iopub_socket, "stream", {"name": "stdout", "text": f"{code.upper()}\n"}
        )
        if code == "fail":
            error = {
                "ename": "Refusal",
                "evalue": "no",
                "traceback": ["\x1b[31mRefusal\x1b[0m: no"],
            }
            return {"status": "error", "execution_count": 1, **error}
        return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=EchoKernel)
