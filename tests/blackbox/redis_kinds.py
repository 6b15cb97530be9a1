"""The other kinds of Redis that nodes may share: Valkey, one that speaks TLS only, and clusters."""

import pathlib
import shutil

from backends import Backend, Redis, starter


class Restarting:
    def restart(self):
        """It dies with all that it held, and is there again."""
        self.kill()
        self.start()


class Valkey(Restarting, Redis):
    name = "valkey-server"

    def __init__(self):
        super().__init__()
        self.program = shutil.copy(starter.valkey_program(), self.folder / "valkey-server")
        pathlib.Path(self.program).chmod(0o755)

    def command(self):
        return starter.redis_command(self.folder, self.port, server=str(self.program))

    def url(self, database=0):
        return f"valkey://127.0.0.1:{self.port}/{database}"


class TlsRedis(Restarting, Redis):
    """With a certificate of this authority."""

    def __init__(self, authority):
        super().__init__()
        self.authority = authority

    def command(self):
        return starter.redis_command(self.folder, self.port, self.authority.settings(self.port))

    def answers(self):
        return starter.redis_answers(self.port, self.authority)

    def url(self, database=0):
        return f"rediss://localhost:{self.port}/{database}"


class ClusterNode(Restarting, Backend):
    name = "redis-server"
    stop_signal = starter.REDIS_STOP

    def __init__(self, authority, node_timeout_ms):
        super().__init__()
        self.authority, self.node_timeout_ms = authority, node_timeout_ms
        self.folder = starter.private_folder(self.parent, "redis", self.user)
        self.bus_port = starter.free_port()

    def command(self):
        return starter.cluster_node_command(self.folder, self.port, self.bus_port, self.authority, self.node_timeout_ms)

    def answers(self):
        return starter.redis_answers(self.port, self.authority)

    def ask(self, *words):
        return starter.redis_ask(self.port, *words, authority=self.authority)


class Cluster:
    """Masters, and as many replicas of each as wanted."""

    MASTERS = starter.CLUSTER_MASTERS

    def __init__(self, replicas=0, authority=None, node_timeout_ms=starter.CLUSTER_NODE_TIMEOUT_MS):
        self.authority = authority
        self.nodes = [ClusterNode(authority, node_timeout_ms) for _ in range(self.MASTERS * (1 + replicas))]

    @property
    def masters(self):
        return self.nodes[: self.MASTERS]

    def start(self):
        for node in self.nodes:
            node.start()
        starter.join_cluster([(node.port, node.bus_port) for node in self.nodes], self.MASTERS, self.authority)
        return self

    def url(self, *nodes):
        """By these nodes, or by its masters."""
        scheme = "rediss+cluster" if self.authority else "redis+cluster"
        return f"{scheme}://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes or self.masters)

    def master_of(self, tag):
        """The master that has the keys with this tag."""
        slot = int(self.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{{tag}}}"))
        share = starter.CLUSTER_SLOTS / self.MASTERS
        return self.masters[int((slot + 0.5) / share)]

    def restart(self):
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            node.start()
        self.wait()

    def wait(self):
        """Until every node says that every slot is served."""
        starter.wait_for_cluster([node.port for node in self.nodes], lambda info: "cluster_state:ok" in info, self.authority)

    def remove(self):
        for node in self.nodes:
            node.remove()
