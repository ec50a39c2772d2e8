"""The HTTP server: OpenAI's images contract and AUTOMATIC1111's, in front of one queue per device.

`app.make_app` puts it together, `serve.run` runs it. Nothing here is imported unless `leandiffusion serve` is.
"""
