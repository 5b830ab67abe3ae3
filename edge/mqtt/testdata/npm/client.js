// Run by TestMQTTjs: node client.js URL
const assert = require('assert')
const mqtt = require('mqtt')
const url = process.argv[2]

const next = (c) => new Promise((ok) => c.once('message', (topic, payload, packet) => ok({ topic, text: payload.toString(), packet })))

async function version (protocolVersion) {
  const t = 'js/' + protocolVersion
  const sub = await mqtt.connectAsync(url, { protocolVersion, clientId: 'sub' + protocolVersion, clean: false, properties: protocolVersion === 5 ? { sessionExpiryInterval: 600 } : undefined })
  await sub.subscribeAsync(t, { qos: 2 })
  const pub = await mqtt.connectAsync(url, { protocolVersion })
  const props = protocolVersion === 5 ? { userProperties: { a: 'b' }, contentType: 'text/plain', messageExpiryInterval: 60 } : undefined
  let m = next(sub)
  await pub.publishAsync(t, 'two', { qos: 2, properties: props })
  m = await m
  assert.equal(m.text, 'two')
  assert.equal(m.packet.qos, 2)
  if (props) {
    assert.equal(m.packet.properties.userProperties.a, 'b')
    assert.equal(m.packet.properties.contentType, 'text/plain')
  }
  await sub.endAsync()
  for (const s of ['1', '2', '3']) await pub.publishAsync(t, s, { qos: 1 })
  const back = mqtt.connect(url, { protocolVersion, clientId: 'sub' + protocolVersion, clean: false, properties: protocolVersion === 5 ? { sessionExpiryInterval: 600 } : undefined })
  const got = []
  const all = new Promise((ok) => back.on('message', (_, p) => { if (got.push(p.toString()) === 3) ok() }))
  const ack = await new Promise((ok) => back.once('connect', ok))
  assert.equal(ack.sessionPresent, true)
  await all
  assert.deepEqual(got, ['1', '2', '3'])
  await pub.publishAsync(t + '/r', 'kept', { qos: 1, retain: true })
  const late = await mqtt.connectAsync(url, { protocolVersion })
  m = next(late)
  await late.subscribeAsync(t + '/r')
  m = await m
  assert.equal(m.text, 'kept')
  assert.equal(m.packet.retain, true)
  await Promise.all([pub.endAsync(), back.endAsync(), late.endAsync()])
}

version(4).then(() => version(5)).then(() => { console.log('ok'); process.exit(0) }, (e) => { console.error(e); process.exit(1) })
