"""In place of the train program: counts to a number, saves as training does, and stops when it is told to.

    python stand_in.py WORKDIR STEPS SECONDS_A_STEP [EXIT_STATUS_AT_THE_END]

Started again, it hurries. It imports nothing that takes long. ``WORKDIR/history`` has a line for each step,
with the number of its process.
"""

import json
import os
import pathlib
import signal
import sys
import time


def main() -> int:
    workdir, steps, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rank = int(os.environ.get("SLURM_PROCID", os.environ.get("JAX_PROCESS_ID", "0")))
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    state = workdir / f"state-{rank}"
    step = int(state.read_text()) if state.exists() else 0
    seconds = 0.0 if step else seconds
    print(f"process {rank} begins at step {step}", flush=True)
    while step < steps and not told:
        time.sleep(seconds)
        step += 1
        with open(workdir / f"history-{rank}", "a") as history:
            history.write(f"{step}\n")
        state.write_text(str(step))
    if told:
        time.sleep(2)  # saving takes a while
    if rank == 0:
        folder = workdir / "checkpoints" / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commit_success.txt").touch()
    if step < steps:
        print(f"process {rank} stops at step {step}", flush=True)
        return 0
    if len(sys.argv) > 4:
        raise SystemExit(int(sys.argv[4]))
    if rank == 0:
        (workdir / "summary.json").write_text(json.dumps({"steps": step}))
    print(f"process {rank} is done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
