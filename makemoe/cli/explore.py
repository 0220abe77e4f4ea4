"""Checks and counts the trials of a sweep: `python -m makemoe.cli.explore FOLDER`.

As `makemoe.cli.examine` does for a comparison: a process of its own, so that `makemoe sweep` need
not import torch. First the config and the ends of all ranges; later one trial at a time.
"""

import sys

from makemoe.cli.examine import Examination, Wanted, main
from makemoe.cli.sizes import factory
from makemoe.search.equal import Asked
from makemoe.search.plan import Plan, Variant
from makemoe.search.space import WIDTH
from makemoe.search.width import width_at
from makemoe.training.work import Work


class Exploration(Examination):
    """Examines the config of a sweep and what may be tried, or one trial."""

    def plan(self) -> Plan:
        """The plan: the config alone, or the trial alone.

        Raises:
            MakeMoEError: for a config, an option or a value that fit would refuse; the message
                names it.
        """
        (one,) = self.request["variants"]
        wanted = Wanted(one["name"], one["words"], [])
        variant = self.trial(wanted) if self.request["first"] else self.config(wanted)
        seeds = range(self.seed, self.seed + self.request["seeds"])
        return Plan((variant,), tuple(seeds), "tokens")

    def config(self, wanted: Wanted) -> Variant:
        """Look at the config, and check every probe: the config with one option changed."""
        self.look_at(wanted)
        variant = self.seen[0].variant
        flops = variant.flops if self.request["narrows"] else None
        for probe in self.request["probes"]:
            with self.naming(probe["name"]):
                self.width(wanted._replace(words=[*wanted.words, probe["word"]]), flops)
        return self.timed(variant)

    def trial(self, wanted: Wanted) -> Variant:
        """Look at a trial, which trains on as many tokens as the config."""
        first = self.request["first"]
        work = Work(first["parameters"], first["active"], first["flops"])
        self.first = Asked(first["steps"], first["val_every"], first["step_tokens"], work)
        flops = work.flops if self.request["narrows"] else None
        self.look_at(self.narrowed(wanted, flops))
        return self.seen[0].variant

    def narrowed(self, wanted: Wanted, flops: int | None) -> Wanted:
        """A variant with experts as wide as its FLOPs per token allow."""
        if flops is None:
            return wanted
        return wanted._replace(words=[*wanted.words, f"--{WIDTH}={self.width(wanted, flops)}"])

    def width(self, wanted: Wanted, flops: int | None) -> int | None:
        """Check a variant; the width of its experts at these FLOPs per token."""
        cli, settings = self.build(wanted.words)
        if flops is None:
            return None
        experts = factory(settings["model"]["experts"])
        return width_at(cli.model.net.architecture, experts, flops)

    def called(self, name: str) -> str:
        return name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Exploration, "sweep"))
