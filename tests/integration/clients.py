"""The real clients, each wrapped in the same few verbs: login, pull (by reference), and what it printed."""
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from stack import Proc, ROOT, SLOW, wait_for


class Result:
    def __init__(self, rc, out, seconds):
        self.rc, self.out, self.seconds = rc, out, seconds

    def __repr__(self):
        return f"rc {self.rc}: {self.out[-2000:]}"


def run(argv, env=None, stdin=None, timeout=120):
    """A client command; both streams together, as a person sees them."""
    full = dict(os.environ)
    full.update(env or {})
    t = time.monotonic()
    p = subprocess.run([str(a) for a in argv], input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=full, timeout=timeout * SLOW, text=True, errors="replace")
    return Result(p.returncode, p.stdout, time.monotonic() - t)


class Client:
    """host: HOST:PORT; ca: path of the CA for TLS, None for plain HTTP; user, secret: what to sign in with."""
    name = ""

    def __init__(self, host, ca, user, secret):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="pg-"))  # short: sockets and podman's run root have small limits
        self.host, self.ca, self.user, self.secret = host, ca, user, secret
        self.authfile = self.dir / "auth.json"
        self.certs = self.dir / "certs"
        if ca:
            self.certs.mkdir(exist_ok=True)
            shutil.copy(ca, self.certs / "ca.crt")
        self.n = 0
        self.start()

    def start(self):
        pass

    def close(self):
        pass

    def login(self):
        raise NotImplementedError

    def pull(self, repository, reference, all_platforms=False):
        raise NotImplementedError

    def ref(self, repository, reference):
        return f"{self.host}/{repository}{'@' if reference.startswith('sha256:') else ':'}{reference}"

    def fresh(self):
        self.n += 1
        return self.dir / f"out{self.n}"


class ContainersImage(Client):
    def tls(self, source=False):
        flag = "--src-" if source else "--"
        return [flag + "cert-dir", self.certs] if self.ca else [flag + "tls-verify=false"]


class Skopeo(ContainersImage):
    name = "skopeo"

    def login(self):
        return run(["skopeo", "login", *self.tls(), "--authfile", self.authfile, "-u", self.user, "--password-stdin", self.host], stdin=self.secret)

    def pull(self, repository, reference, all_platforms=False):
        out = self.fresh()
        r = run(["skopeo", "copy", *(["--all"] if all_platforms else []), *self.tls(True), "--authfile", self.authfile,
                 "docker://" + self.ref(repository, reference), f"oci:{out}:x"])
        r.path = out
        return r

    def pull_as_is(self, repository, reference):
        """Into plain files named by digest; nothing recompressed."""
        out = self.fresh()
        r = run(["skopeo", "copy", *self.tls(True), "--authfile", self.authfile, "docker://" + self.ref(repository, reference), f"dir:{out}"])
        r.path = out
        return r

    def list_tags(self, repository):
        return run(["skopeo", "list-tags", *self.tls(), "--authfile", self.authfile, f"docker://{self.host}/{repository}"])

    def inspect(self, repository, reference):
        return run(["skopeo", "inspect", *self.tls(), "--authfile", self.authfile, "docker://" + self.ref(repository, reference)])


class Podman(ContainersImage):
    name = "podman"

    def base(self):
        return ["podman", "--root", self.dir / "root", "--runroot", self.dir / "runroot", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
                "--events-backend", "none"]

    def login(self):
        return run([*self.base(), "login", *self.tls(), "--authfile", self.authfile, "-u", self.user, "--password-stdin", self.host], stdin=self.secret)

    def pull(self, repository, reference, all_platforms=False):
        run([*self.base(), "rmi", "-af"])
        return run([*self.base(), "pull", *self.tls(), "--authfile", self.authfile, self.ref(repository, reference)])


class Buildah(ContainersImage):
    name = "buildah"

    def base(self):
        return ["buildah", "--root", self.dir / "root", "--runroot", self.dir / "runroot", "--storage-driver", "vfs"]

    def login(self):
        return run(["buildah", "login", *self.tls(), "--authfile", self.authfile, "-u", self.user, "--password-stdin", self.host], stdin=self.secret)

    def pull(self, repository, reference, all_platforms=False):
        run([*self.base(), "rmi", "-af"])
        return run([*self.base(), "pull", *self.tls(), "--authfile", self.authfile, self.ref(repository, reference)])


class Docker(Client):
    """Debian's engine. Loopback addresses are 'insecure registries' to it: plain HTTP, or TLS without a CA."""
    name = "docker"

    def start(self):
        self.socket = self.dir / "docker.sock"
        self.env = {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.dir / "config")}
        self.proc = Proc("dockerd", ["dockerd", "--storage-driver=vfs", "--iptables=false", "--ip6tables=false", "--bridge=none",
                                     "--data-root", self.dir / "data", "--exec-root", self.dir / "exec", "--pidfile", self.dir / "pid",
                                     "-H", f"unix://{self.socket}"], self.dir)
        wait_for("dockerd", lambda: run(["docker", "version"], self.env).rc == 0, 60)

    def close(self):
        self.proc.stop(timeout=30)

    def login(self):
        return run(["docker", "login", "-u", self.user, "--password-stdin", self.host], self.env, stdin=self.secret)

    def pull(self, repository, reference, all_platforms=False):
        run(["docker", "image", "prune", "-af"], self.env)
        return run(["docker", "pull", self.ref(repository, reference)], self.env)


class Ctr(Client):
    """containerd's own client: what Kubernetes does on the wire. No login: each pull brings the key."""
    name = "ctr"

    def start(self):
        self.socket = self.dir / "containerd.sock"
        config = self.dir / "config.toml"
        config.write_text(f'version = 2\nroot = "{self.dir}/root"\nstate = "{self.dir}/state"\n'
                          'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
                          f'[grpc]\n  address = "{self.socket}"\n[ttrpc]\n  address = "{self.dir}/ttrpc.sock"\n')
        self.proc = Proc("containerd", ["containerd", "-c", config], self.dir)
        self.hosts = self.dir / "hosts"
        if self.ca:  # loopback is plain HTTP to containerd unless a hosts file says otherwise
            (self.hosts / self.host).mkdir(parents=True)
            (self.hosts / self.host / "hosts.toml").write_text(
                f'server = "https://{self.host}"\nca = "{self.ca}"\n[host."https://{self.host}"]\n  ca = "{self.ca}"\n')
        wait_for("containerd", lambda: run(["ctr", "-a", self.socket, "version"]).rc == 0, 60)

    def close(self):
        self.proc.stop(timeout=30)

    def login(self):
        return Result(0, "(none: each pull brings the key)", 0)

    def pull(self, repository, reference, all_platforms=False):
        ref = self.ref(repository, reference)
        run(["ctr", "-a", self.socket, "image", "rm", "--sync", ref])
        return run(["ctr", "-a", self.socket, "image", "pull", "--snapshotter", "native", *(["--all-platforms"] if all_platforms else []),
                    *(["--hosts-dir", self.hosts] if self.ca else ["--plain-http"]), "-u", f"{self.user}:{self.secret}", ref])


class Helm(Client):
    major = 3

    def start(self):
        self.helm = run([ROOT / "conf" / "get-helm.sh", self.major]).out.strip()
        home = self.dir / "home"
        self.env = {"HELM_CACHE_HOME": str(home / "cache"), "HELM_CONFIG_HOME": str(home / "config"), "HELM_DATA_HOME": str(home / "data"),
                    "HOME": str(home), "DOCKER_CONFIG": str(home / "docker")}

    def login(self):
        plain = ["--insecure"] if self.major == 3 else ["--plain-http"]
        return run([self.helm, "registry", "login", self.host, "--username", self.user, "--password-stdin",
                    *(["--ca-file", self.ca] if self.ca else plain)], self.env, stdin=self.secret)

    def pull(self, repository, reference, all_platforms=False):
        out = self.fresh()
        out.mkdir()
        where = f"oci://{self.host}/{repository}" + (f"@{reference}" if reference.startswith("sha256:") else "")
        r = run([self.helm, "pull", where, *(["--version", reference] if reference and not reference.startswith("sha256:") else []), "-d", out,
                 *(["--ca-file", self.ca] if self.ca else ["--plain-http"])], self.env)
        r.path = out
        return r


class Helm3(Helm):
    name = "helm3"
    major = 3


class Helm4(Helm):
    name = "helm4"
    major = 4


IMAGE_CLIENTS = [Docker, Ctr, Podman, Buildah, Skopeo]
CHART_CLIENTS = [Helm3, Helm4]


@contextlib.contextmanager
def client(cls, *args):
    c = cls(*args)
    try:
        yield c
    finally:
        c.close()
        run(["sh", "-c", f"awk '{{print $2}}' /proc/mounts | grep '^{c.dir}/' | tac | xargs -r umount; rm -rf {c.dir}"])
