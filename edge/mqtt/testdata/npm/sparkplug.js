// Run by TestSparkplugWithTahusCodec: node sparkplug.js URL. An edge node and a host application that
// encode and decode with sparkplug-payload (Eclipse Tahu), over MQTT.js.
const assert = require('assert')
const mqtt = require('mqtt')
const spb = require('sparkplug-payload').get('spBv1.0')
const url = process.argv[2]

const metrics = (...m) => ({ timestamp: Date.now(), seq: 0, metrics: m })
const bd = (n) => ({ name: 'bdSeq', type: 'UInt64', value: n })
const value = (p, name) => Number(p.metrics.find((m) => m.name === name).value)

// listen collects messages of a host application; until(topic) waits for the next of a topic.
async function listen (clientId, ...filters) {
  const c = await mqtt.connectAsync(url, { clientId })
  const seen = []
  const waiting = []
  c.on('message', (topic, payload, packet) => {
    seen.push({ topic, payload: topic.includes('/STATE/') ? payload.toString() : spb.decodePayload(payload), packet })
    waiting.splice(0).forEach((f) => f())
  })
  await c.subscribeAsync(filters, { qos: 1 })
  const until = async (topic) => {
    for (;;) {
      const i = seen.findIndex((m) => m.topic === topic)
      if (i >= 0) return seen.splice(i, 1)[0]
      await new Promise((ok) => waiting.push(ok))
    }
  }
  return { c, until, seen }
}

async function main () {
  // The host says that it is online: retained JSON, its will says the contrary.
  const app = await mqtt.connectAsync(url, { clientId: 'host-app', will: { topic: 'spBv1.0/STATE/host', payload: '{"online":false,"timestamp":1}', qos: 1, retain: true } })
  await app.publishAsync('spBv1.0/STATE/host', '{"online":true,"timestamp":1}', { qos: 1, retain: true })
  const host = await listen('watcher', 'spBv1.0/#')
  assert.equal((await host.until('spBv1.0/STATE/host')).packet.retain, true)

  // An edge node: NDEATH is its will (QoS 1, not retained), then NBIRTH and NDATA at QoS 0.
  const death = Buffer.from(spb.encodePayload(metrics(bd(7))))
  const node = await mqtt.connectAsync(url, { clientId: 'edge-node', clean: true, will: { topic: 'spBv1.0/G/NDEATH/E', payload: death, qos: 1, retain: false }, reconnectPeriod: 0 })
  const birth = Buffer.from(spb.encodePayload(metrics(bd(7), { name: 'power', type: 'Double', value: 919.5 })))
  await node.publishAsync('spBv1.0/G/NBIRTH/E', birth)
  await node.publishAsync('spBv1.0/G/NDATA/E', Buffer.from(spb.encodePayload(metrics({ name: 'power', type: 'Double', value: 920.25 }))))
  let m = await host.until('spBv1.0/G/NBIRTH/E')
  assert.equal(m.packet.retain, false)
  assert.equal(value(m.payload, 'power'), 919.5)
  assert.equal(value((await host.until('spBv1.0/G/NDATA/E')).payload, 'power'), 920.25)

  // An aware server has kept the BIRTH, byte for byte, for whoever comes later.
  const late = await listen('late', '$sparkplug/certificates/#')
  m = await late.until('$sparkplug/certificates/spBv1.0/G/NBIRTH/E')
  assert.equal(m.packet.retain, true)
  assert.equal(value(m.payload, 'bdSeq'), 7)
  assert.equal(m.packet.payload.compare(birth), 0)

  // The connection breaks: NDEATH comes with the bdSeq of the BIRTH. A host that goes says so by its will.
  node.stream.destroy()
  m = await host.until('spBv1.0/G/NDEATH/E')
  assert.equal(value(m.payload, 'bdSeq'), 7)
  assert.equal(m.packet.qos, 1)
  app.stream.destroy()
  m = await host.until('spBv1.0/STATE/host')
  assert.equal(JSON.parse(m.payload).online, false)
  console.log('ok')
  process.exit(0)
}

main().catch((e) => { console.error(e); process.exit(1) })
