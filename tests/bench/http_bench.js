'use strict'
// ilp-plugin-http 1.6.1 under load, as either end, to measure this package against.
//
//   node http_bench.js server
//   node http_bench.js client --url http://127.0.0.1:PORT [--calls 20000] [--in-flight 100] [--size 300] [--warmup 0]
//
// The server echoes. It prints {"port"} once bound and, when its stdin ends, {"cpu_seconds"}. The client keeps `in-flight`
// calls going until `calls` were answered and prints {"rate", "cpu_seconds"}. Sizes vary by a sixth around `size`, as those
// of real packets do. The packages are those of ../interop (`npm ci` there).

const { parseArgs } = require('util')
const { open } = require('../interop/http_peer.js')

const print = (result) => process.stdout.write(JSON.stringify(result) + '\n')
const TOKEN = { staticToken: 'bench' }

function cpuSeconds (since) {
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1e6
}

async function serve () {
  const { plugin, port } = await open({ incoming: TOKEN, outgoing: TOKEN })
  plugin.registerDataHandler(async (data) => data)
  process.stdin.on('end', () => {
    print({ cpu_seconds: cpuSeconds() })
    process.exit(0)
  })
  process.stdin.resume()
  print({ port })
}

async function load (plugin, calls, inFlight, size) {
  let next = 0
  const lane = async () => {
    while (next < calls) {
      const number = next++
      const request = Buffer.alloc(size - (number * 7919) % Math.ceil(size / 6), 0x5a)
      const answer = await plugin.sendData(request)
      if (!answer.equals(request)) throw new Error(`call ${number} came back changed`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(inFlight, calls) }, lane))
}

async function measure (options) {
  const [calls, inFlight, size, warmup] =
    [options.calls, options['in-flight'], options.size, options.warmup].map(Number)
  const { plugin } = await open({ incoming: TOKEN, outgoing: { ...TOKEN, url: options.url } })
  await load(plugin, warmup, inFlight, size)
  const cpu = process.cpuUsage()
  const began = performance.now()
  await load(plugin, calls, inFlight, size)
  print({ rate: calls * 1000 / (performance.now() - began), cpu_seconds: cpuSeconds(cpu) })
  process.exit(0)
}

const { values, positionals: [mode] } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: 'string' },
    calls: { type: 'string', default: '20000' },
    'in-flight': { type: 'string', default: '100' },
    size: { type: 'string', default: '300' },
    warmup: { type: 'string', default: '0' }
  }
})
const run = mode === 'server' ? serve() : measure(values)
run.catch((error) => {
  process.stderr.write(`${error.stack}\n`)
  process.exit(1)
})
