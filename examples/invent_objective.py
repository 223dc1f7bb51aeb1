"""Invent an objective: write it down, have it refuted, mend it, look at the loss that comes out.

Run: python examples/invent_objective.py      (seconds; no training)
"""

import flowdsl

# A map towards the data that is learnt from both ends of a jump at once: the start moves along the
# path, as in MeanFlow, and the target at the end is the slow network's velocity there. The
# first attempt forgets that the two halves weigh differently.
FIRST_ATTEMPT = """
objective halves  "Half a jump by the derivative, half by a slow network"
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1)); m = t - 0.25 * (t - r)
network       u(z, t, r); slow = ema(u, decay = 0.99)
map           z(t) -> z(r) = z - (t - r) * u(z, t, r)
target        near = slow(z, t, m); far = slow(map(z, t, m | u = slow), m, r)
              match u(z, t, r) to stop((near + far) / 2)
anchor        match u(z, t, t) to velocity
"""

MENDED = FIRST_ATTEMPT.replace("(near + far) / 2", "0.25 * near + 0.75 * far")


def main() -> None:
    for name, text in (("first attempt", FIRST_ATTEMPT), ("mended", MENDED)):
        print(f"--- {name}")
        objective = flowdsl.loads(text, name)
        report = objective.check()
        print(report.render())
        for diagnostic in report.diagnostics:
            print(f"\n{diagnostic.message}")
            for what, text_ in diagnostic.facts:
                print(f"  {what}: {text_}")
        print()
    print(flowdsl.loads(MENDED, "mended").emit())


if __name__ == "__main__":
    main()
