package hadoopconf

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
)

// declaration matches the XML declaration at the start of a document.
var declaration = regexp.MustCompile(`^<\?xml[^>]*\?>`)

// xml11 matches the version 1.1 in a declaration. encoding/xml knows only version 1.0. The versions differ only in
// characters that no configuration contains.
var xml11 = regexp.MustCompile(`(version\s*=\s*["'])1\.1(["'])`)

// encodingName matches the encoding in a declaration.
var encodingName = regexp.MustCompile(`\sencoding\s*=\s*["'][^"']*["']`)

// unicodeText returns a document in a form whose declaration the XML reader can read. It recognises UTF-16 by the
// first bytes, and converts it to UTF-8.
func unicodeText(data []byte) (string, error) {
	var err error
	wide := true
	switch {
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}), bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		data, err = unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder().Bytes(data)
	case bytes.HasPrefix(data, []byte{0, '<', 0, '?'}):
		data, err = unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM).NewDecoder().Bytes(data)
	case bytes.HasPrefix(data, []byte{'<', 0, '?', 0}):
		data, err = unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM).NewDecoder().Bytes(data)
	default:
		wide = false
	}
	if err != nil {
		return "", fmt.Errorf("it begins like UTF-16, but is not UTF-16 (%w)", err)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	if head := declaration.FindString(text); head != "" {
		rest := text[len(head):]
		if head = xml11.ReplaceAllString(head, "${1}1.0${2}"); wide {
			head = encodingName.ReplaceAllString(head, "")
		}
		text = head + rest
	}
	return text, nil
}

// charset returns a reader that decodes the encoding of that name. It knows the names that Java knows.
func charset(name string, in io.Reader) (io.Reader, error) {
	switch lower := strings.ToLower(name); lower {
	case "us-ascii", "ascii", "utf-8", "utf8":
		return in, nil
	case "utf-16", "utf-16le", "utf-16be", "utf16": // unicodeText has decoded real UTF-16
		return nil, fmt.Errorf("the first line says %s, and the file is not: %w", name, encodingError(name))
	case "iso-8859-1", "iso8859-1", "iso8859_1", "latin1": // browsers read windows-1252 under this name, Java does not
		return charmap.ISO8859_1.NewDecoder().Reader(in), nil
	default:
		if rest, ok := strings.CutPrefix(lower, "cp12"); ok { // Java's Cp1252
			lower = "windows-12" + rest
		}
		e, err := htmlindex.Get(lower)
		if err != nil || e == encoding.Replacement {
			return nil, encodingError(name)
		}
		return e.NewDecoder().Reader(in), nil
	}
}

type encodingError string

func (e encodingError) Error() string {
	return fmt.Sprintf("the encoding %q is not supported", string(e))
}
