-- Requests for wrk, and its results as one line of JSON.
-- Arguments: the request's target (a path, or a URL for a proxy), its Host, keep-alive or close.
function init(args)
   wrk.path = args[1]
   wrk.headers["Host"] = args[2]
   wrk.headers["Connection"] = args[3]
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "p99_ms": %.3f, "errors": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
