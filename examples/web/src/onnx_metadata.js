/**
 * Texts in an ONNX file, which onnxruntime-web does not show.
 *
 * An ONNX file is a ModelProto in the encoding of protocol buffers (protobuf.dev/programming-guides/encoding): fields
 * one after the other, each with a number and a wire type. Its field 14, `metadata_props`, holds pairs of texts.
 */

const METADATA_PROPS = 14;
const [KEY, VALUE] = [1, 2];
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];

/**
 * Return the metadata of an ONNX file as a Map from key to text.
 *
 * @param {Uint8Array} file its content
 * @throws {Error} it is not the encoding of a protocol buffer
 */
export function readMetadata(file) {
  const metadata = new Map();
  for (const { number, content } of fields(file)) {
    if (number === METADATA_PROPS && content) {
      const pair = new Map([...fields(content)].map((field) => [field.number, text(field.content)]));
      metadata.set(pair.get(KEY), pair.get(VALUE) ?? "");
    }
  }
  return metadata;
}

/** Yield the number of every field and, if it is not a number, its content. Weights are passed over, not read. */
function* fields(bytes) {
  let at = 0;
  while (at < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    const type = tag % 8;
    let length = { [FIXED64]: 8, [FIXED32]: 4 }[type];
    if (type === VARINT) {
      varint();
      length = 0;
    } else if (type === BYTES) {
      length = varint();
    }
    if (length === undefined || number === 0 || at + length > bytes.length) {
      throw new Error("not a protocol buffer");
    }
    yield { number, content: type === BYTES ? bytes.subarray(at, at + length) : null };
    at += length;
  }

  /** Read a number of seven bits per byte, the lowest first. Not by bit operations: they have 32 bits. */
  function varint() {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (at >= bytes.length) {
        break;
      }
      const byte = bytes[at++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) {
        return value;
      }
    }
    throw new Error("not a protocol buffer");
  }
}

function text(bytes) {
  return new TextDecoder().decode(bytes ?? new Uint8Array());
}
