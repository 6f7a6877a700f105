"""A ROS 2 node that runs a bundle on the pictures of a topic, with the base install alone.

    python ros2_node.py --ros-args -p bundle:=bundle.mtlc -p tasks:="[depth, semseg]" -r image:=/camera/image_raw

It subscribes to `image` (sensor_msgs/Image in rgb8 or bgr8) and publishes for each task a sensor_msgs/Image of the same
size under its name: 32FC1 for maps of one channel, 8UC1 with class numbers for maps of several.
Parameters: `bundle`, `tasks` (default: all), `threads` (0: the backend's own). Only the newest picture waits.

rclpy and the messages come with ROS 2; `frame` and `answer` need neither.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mtlc.errors import MtlcError, UserError
from mtlc.runtime import Session


def frame(data: bytes, height: int, width: int, step: int, encoding: str) -> np.ndarray:
    """The picture (H, W, 3) of uint8 in RGB order in an Image's fields. Rows may be padded: `step` is a row's bytes."""
    if encoding not in ("rgb8", "bgr8"):
        raise UserError(f"encoding {encoding!r}: expected rgb8 or bgr8")
    if step < 3 * width or len(data) < step * height:
        raise UserError(f"{len(data)} bytes with rows of {step} are no picture of {width}x{height}")
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)
    pixels = rows[:, : 3 * width].reshape(height, width, 3)
    return np.ascontiguousarray(pixels[:, :, ::-1] if encoding == "bgr8" else pixels)


def answer(output: np.ndarray) -> tuple[str, np.ndarray]:
    """The encoding and the array (H, W) that go out for a task's output (1, C, H, W)."""
    if output.ndim != 4 or len(output) != 1:
        raise UserError(f"an output of shape {output.shape} is no picture")
    if output.shape[1] == 1:
        return "32FC1", np.ascontiguousarray(output[0, 0], np.float32)
    if output.shape[1] > 256:
        raise UserError(f"{output.shape[1]} classes do not fit 8UC1")
    return "8UC1", output[0].argmax(axis=0).astype(np.uint8)


def main() -> None:
    try:
        import rclpy
        from rclpy.node import Node
        from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image
    except ImportError:
        sys.exit("error: ROS 2's Python packages are not here: source the setup.bash of its installation")

    class BundleNode(Node):
        """Runs the bundle on each picture that comes."""

        def __init__(self) -> None:
            super().__init__("mtlc")
            bundle = self.declare_parameter("bundle", "bundle.mtlc").value
            threads = self.declare_parameter("threads", 0).value
            tasks = self.declare_parameter("tasks", [""]).value
            self._session = Session(bundle, threads=threads or None)
            self._tasks = [task for task in tasks if task] or list(self._session.tasks)
            newest = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._topics = {task: self.create_publisher(Image, task, newest) for task in self._tasks}
            self.create_subscription(Image, "image", self._run, newest)

        def _run(self, message: Any) -> None:
            try:
                picture = frame(bytes(message.data), message.height, message.width, message.step, message.encoding)
                outputs = self._session.run(self._session.preprocess(picture), self._tasks)
                outputs = self._session.restore(outputs, picture.shape[:2])
                answers = {task: answer(output) for task, output in outputs.items()}
            except MtlcError as error:  # one picture that does not fit must not end the node
                self.get_logger().error(str(error), throttle_duration_sec=5.0)
                return
            for task, (encoding, array) in answers.items():
                made = Image(header=message.header, height=array.shape[0], width=array.shape[1], encoding=encoding)
                made.step, made.data = array.strides[0], array.tobytes()
                self._topics[task].publish(made)

    rclpy.init()
    try:
        rclpy.spin(BundleNode())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    try:
        main()
    except MtlcError as error:
        sys.exit(f"error: {error}")
