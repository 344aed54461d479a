"""Explanations in an OpenCV loop of one's own: python opencv_loop.py MODEL VIDEO OUTPUT.avi"""

import sys

import cv2

import whycam

explainer, overlay = whycam.load(sys.argv[1]), whycam.Overlay()
capture = cv2.VideoCapture(sys.argv[2])
size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
writer = cv2.VideoWriter(sys.argv[3], cv2.VideoWriter.fourcc(*"MJPG"), 25, size)
while (frame := capture.read()[1]) is not None:
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    drawn = overlay.draw(rgb, explainer.explain(rgb))
    writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
writer.release()
