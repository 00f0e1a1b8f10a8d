'use strict'
// ilp-plugin-btp 1.5.0 under load, as either end, to measure this package against.
//
//   node btp_bench.js server [--port 0] [--token bench]
//   node btp_bench.js client --url btp+ws://bench:bench@127.0.0.1:PORT [--calls 20000] [--in-flight 100] [--size 300]
//                            [--warmup 0]
//
// The server echoes. It prints {"port"} once bound and, when its stdin ends, {"served", "cpu_seconds"}. The client keeps
// `in-flight` calls going until `calls` were answered and prints one line: {"rate", "calls", "in_flight", "size",
// "seconds", "cpu_seconds", "latency_ms": {"p50", "p90", "p99", "max"}}. CPU time is of the measured calls only,
// user and system together. The packages are those of ../interop (`npm ci` there).

const { parseArgs } = require('util')
const { BtpPlugin, listen } = require('../interop/btp_peer.js')

const print = (result) => process.stdout.write(JSON.stringify(result) + '\n')

function cpuSeconds (since) {
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1e6
}

async function serve ({ port, token }) {
  const { plugin, bound } = listen(BtpPlugin, { port: Number(port), token, onConnectFailed: (error) => { throw error } })
  let served = 0
  plugin.registerDataHandler(async (data) => {
    served += 1
    return data
  })
  process.stdin.on('end', () => {
    print({ served, cpu_seconds: cpuSeconds() })
    process.exit(0)
  })
  process.stdin.resume()
  print({ port: await bound })
}

// Each lane waits for its answer before it sends again, so that `inFlight` calls are open at any time.
async function load (plugin, calls, inFlight, size) {
  const latencies = new Float64Array(calls)
  const request = Buffer.alloc(size, 0x5a)
  let next = 0
  const lane = async () => {
    while (next < calls) {
      const number = next++
      const sent = performance.now()
      const answer = await plugin.sendData(request)
      latencies[number] = performance.now() - sent
      if (!answer.equals(request)) throw new Error(`call ${number} came back changed`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(inFlight, calls) }, lane))
  return latencies.sort()
}

async function measure (options) {
  const [calls, inFlight, size, warmup] =
    [options.calls, options['in-flight'], options.size, options.warmup].map(Number)
  const plugin = new BtpPlugin({ server: options.url })
  await plugin.connect()
  await load(plugin, warmup, inFlight, size)
  const cpu = process.cpuUsage()
  const began = performance.now()
  const latencies = await load(plugin, calls, inFlight, size)
  const seconds = (performance.now() - began) / 1000
  const cpuTime = cpuSeconds(cpu)
  const quantile = (share) => latencies[Math.min(calls - 1, Math.floor(share * calls))]
  print({
    rate: calls / seconds,
    calls,
    in_flight: inFlight,
    size,
    seconds,
    cpu_seconds: cpuTime,
    latency_ms: { p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max: latencies[calls - 1] }
  })
  await plugin.disconnect()
  process.exit(0)
}

const { values, positionals: [mode] } = parseArgs({
  allowPositionals: true,
  options: {
    port: { type: 'string', default: '0' },
    token: { type: 'string', default: 'bench' },
    url: { type: 'string' },
    calls: { type: 'string', default: '20000' },
    'in-flight': { type: 'string', default: '100' },
    size: { type: 'string', default: '300' },
    warmup: { type: 'string', default: '0' }
  }
})
const modes = { server: serve, client: measure }
if (!(mode in modes) || (mode === 'client' && !values.url)) {
  process.stderr.write('usage: btp_bench.js server|client --url URL (see the head of this file)\n')
  process.exit(2)
}
modes[mode](values).catch((error) => {
  process.stderr.write(`${error.stack}\n`)
  process.exit(1)
})
