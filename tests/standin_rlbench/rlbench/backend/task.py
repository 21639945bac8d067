"""A task: a tabletop task under the benchmark's name; stock RLBench has other names for three of them."""

from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.registry import get_task

STOCK_NAMES = {
    "sweep_to_dustpan": "sweep_to_dustpan_of_size",
    "slide_block_to_target": "slide_block_to_color_target",
    "stack_wine": "place_wine_at_rack_location",
}


class Task:
    def __init__(self) -> None:
        name = self.get_name()
        self.sim = Simulation(get_task(STOCK_NAMES.get(name, name)))

    def get_name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[1]

    def variation_count(self) -> int:
        return self.sim.task.variation_count
