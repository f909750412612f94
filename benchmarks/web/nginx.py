"""nginx with sendfile, for files: what serving them costs in C, without an application."""

from __future__ import annotations

import grp
import os
import pwd
import sys

from benchmarks.web.application import FOLDER

CONFIGURATION = """
user {user} {group};
daemon off;
worker_processes 1;
pid /dev/null;
error_log stderr;
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    server {{
        listen 127.0.0.1:{port};
        location /files/ {{ alias {folder}/; }}
    }}
}}
"""


def main(port: int) -> None:
    """Become nginx."""
    configuration = os.memfd_create("nginx.conf", 0)
    text = CONFIGURATION.format(
        user=pwd.getpwuid(os.geteuid()).pw_name,
        group=grp.getgrgid(os.getegid()).gr_name,
        port=port,
        folder=FOLDER,
    )
    os.write(configuration, text.encode())
    os.execvp("nginx", ["nginx", "-c", f"/proc/self/fd/{configuration}"])


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin"
    main(int(sys.argv[1]))
