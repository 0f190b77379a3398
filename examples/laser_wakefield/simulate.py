"""A laser drives a wake through a plasma: FBPIC, one iteration of electrons after the other over SST, or into a file.

python simulate.py electrons.sst      waits for a reader, and then for no file system
python simulate.py recording.bp       records the same iterations

FBPIC (https://github.com/fbpic/fbpic) comes with `pip install "holdfast[sim]"`; it runs on the CPU by numba. The first
steps are compiled for some twenty seconds. Lengths are written in units of the plasma's skin depth c / omega_p, along
the laser from the left edge of the box; momenta in units of m_e c. `unitSI` says how large that is.
"""

import argparse
import json
import math
import sys

import numpy as np

DENSITY = 4e24
"""Electrons a cubic metre."""


def make_simulation():
    """A quasi-cylindrical box of 160 x 20 cells and two modes, which a laser pulse of a_0 = 4 crosses in 128 steps."""
    try:
        from fbpic.lpa_utils.laser import add_laser
        from fbpic.main import Simulation
    except ImportError:
        sys.exit('FBPIC is not installed. Write pip install "holdfast[sim]".')
    left, right, cells, radius = -10e-6, 40e-6, 160, 20e-6
    light = 299792458.0
    simulation = Simulation(
        *(cells, right, 20, radius, 2, (right - left) / cells / light),
        p_zmin=10e-6,
        p_zmax=40e-6,
        p_rmin=0.0,
        p_rmax=18e-6,
        p_nz=2,
        p_nr=2,
        p_nt=4,
        n_e=DENSITY,
        zmin=left,
        boundaries={"z": "open", "r": "reflective"},
        verbose_level=0,
    )
    add_laser(simulation, a0=4.0, w0=5e-6, ctau=5e-6, z0=0.0)
    electrons, random = simulation.ptcl[0], np.random.default_rng(1)
    for momentum in (electrons.ux, electrons.uy, electrons.uz):  # the plasma is warm
        momentum += 0.02 * random.normal(size=len(momentum))
    return simulation


def write(simulation, path, iterations, steps, particles):
    """An iteration of randomly chosen electrons after every `steps` steps."""
    import openpmd_api as io

    engine = {"OpenTimeoutSecs": "120"}
    if path.endswith(".sst"):
        engine |= {"RendezvousReaderCount": "1", "QueueLimit": "1", "QueueFullPolicy": "Block"}
    told = {"iteration_encoding": "variable_based", "adios2": {"engine": {"parameters": engine}}}
    series = io.Series(path, io.Access.create_linear, json.dumps(told))
    series.set_software("FBPIC")
    skin = 299792458.0 / math.sqrt(DENSITY * 1.602176634e-19**2 / (8.8541878128e-12 * 9.1093837e-31))
    units = {"position": skin, "momentum": 9.1093837e-31 * 299792458.0}
    random = np.random.default_rng(0)
    for _ in range(iterations):
        simulation.step(steps, show_progress=False)
        electrons, left = simulation.ptcl[0], simulation.fld.interp[0].zmin
        chosen = random.permutation(electrons.Ntot)[:particles]
        values = {
            "position": {"x": electrons.x / skin, "z": (electrons.z - left) / skin},
            "momentum": {"x": electrons.ux, "z": electrons.uz},
        }
        iteration = series.snapshots()[simulation.iteration]
        iteration.time, iteration.dt = simulation.time, simulation.dt
        for record, components in values.items():
            for axis, column in components.items():
                made = iteration.particles["e"][record][axis]
                kept = np.ascontiguousarray(column[chosen], dtype=np.float32)
                made.reset_dataset(io.Dataset(kept.dtype, kept.shape))
                made.unit_SI = units[record]
                made.store_chunk(kept)
        iteration.close()
        print(
            f"step {simulation.iteration}: {electrons.Ntot} electrons, largest p_z {electrons.uz.max():.2f}", flush=True
        )
    series.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="of the series: NAME.sst or NAME.bp")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="of the simulation for each iteration")
    parser.add_argument("--particles", type=int, default=2000, help="electrons of each iteration that are written")
    given = parser.parse_args()
    write(make_simulation(), given.path, given.iterations, given.steps, given.particles)
