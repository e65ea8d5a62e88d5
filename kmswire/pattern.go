package kmswire

import "claviger"

// pattern is the JSON of an item of a batch, with holes in the place of IV and material. Nearly all items of a batch
// differ only in these two strings, whatever order, spelling and white space the client uses. So an item is compared
// with the pattern of an earlier item, and only the two strings are decoded. That takes a tenth of the time.
//
// The result is that of reading the item as JSON: the two strings have only base64 characters, so they end where those
// of the pattern end, and all other bytes are equal. An item that differs is read as JSON.
type pattern struct {
	json          []byte // of the item; nil if there is no pattern
	first, second hole   // in the order of json
	materialFirst bool
}

// hole is a string in the JSON of a pattern.
type hole struct {
	from, to int // without the quotes
	decoded  int // its length in bytes
}

// patternOf returns the pattern of the item data[from:to] with that IV and material. It is empty if one of them has
// escapes, padding or white space.
func patternOf(data []byte, from, to int, iv, material value) (p pattern) {
	p.materialFirst = material.at < iv.at
	first, second := iv, material
	if p.materialFirst {
		first, second = material, iv
	}
	var ok1, ok2 bool
	p.first, ok1 = holeOf(data, from, first)
	p.second, ok2 = holeOf(data, from, second)
	if ok1 && ok2 {
		p.json = data[from:to:to]
	}
	return p
}

// holeOf returns the place of a string in an item that begins at from. ok is false unless the string is base64 without
// padding. A string with an escape is refused, too: it has a backslash among its first len(v.text) characters.
func holeOf(data []byte, from int, v value) (h hole, ok bool) {
	n := len(v.text)
	if n%4 == 1 {
		return hole{}, false
	}
	for _, c := range data[v.at : v.at+n] {
		if base64Values[c] == 0xff {
			return hole{}, false
		}
	}
	return hole{from: v.at - from, to: v.at - from + n, decoded: urlSafe.DecodedLen(n)}, true
}

// similar reads the next item if it differs from the pattern only in IV and material. Otherwise it returns false, and
// reads nothing but white space.
func (b *batchReader) similar() bool {
	p := &b.pattern
	b.skipSpace()
	if len(p.json) == 0 || len(b.data)-b.pos < len(p.json) {
		return false
	}
	item, first, second := b.data[b.pos:b.pos+len(p.json)], p.first, p.second
	if string(item[:first.from]) != string(p.json[:first.from]) ||
		string(item[first.to:second.from]) != string(p.json[first.to:second.from]) ||
		string(item[second.to:]) != string(p.json[second.to:]) {
		return false
	}
	before := len(b.buf)
	iv, ok := b.fill(item, first)
	material, ok2 := b.fill(item, second)
	if !ok || !ok2 {
		b.buf = b.buf[:before]
		return false
	}
	if p.materialFirst {
		iv, material = material, iv
	}
	b.edeks = append(b.edeks, claviger.EDEK{Version: b.version, IV: iv, Material: material})
	b.pos += len(item)
	return true
}

// fill decodes the string that an item has in the place of a hole. ok is false unless it is base64 without padding.
func (b *batchReader) fill(item []byte, h hole) (value []byte, ok bool) {
	value, b.buf, ok = decodeStrict(b.buf, item[h.from:h.to])
	return value, ok && len(value) == h.decoded // white space and padding give fewer bytes
}
