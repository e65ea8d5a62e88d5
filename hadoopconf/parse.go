package hadoopconf

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Limits of one file. Real ones are a few hundred kilobytes at most.
const (
	maxFileSize     = 8 << 20
	maxIncludeDepth = 10
	xincludeSpace   = "http://www.w3.org/2001/XInclude"
)

// parser reads one file and what it includes.
type parser struct {
	props    []Property
	warnings []string
	open     []string // files being read, outermost first
}

func parseFile(path string) ([]Property, []string, error) {
	p := &parser{}
	if err := p.file(path); err != nil {
		return nil, nil, err
	}
	return p.props, p.warnings, nil
}

func (p *parser) file(path string) error {
	for _, o := range p.open {
		if o == path {
			return fmt.Errorf("%s: the file includes itself by way of %s; take one of the xi:include elements out", path, strings.Join(p.open, ", "))
		}
	}
	if len(p.open) == maxIncludeDepth {
		return fmt.Errorf("%s: files are included more than %d deep; include it from further up", path, maxIncludeDepth)
	}
	f, err := os.Open(path)
	if err != nil {
		return err // an *os.PathError names the file and can be asked for ErrNotExist
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(data) > maxFileSize {
		return fmt.Errorf("%s: the file is larger than %d MiB; that is no configuration file", path, maxFileSize>>20)
	}
	p.open = append(p.open, path)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	return p.parse(path, string(data))
}

// document is a token reader that knows where it is.
type document struct {
	*xml.Decoder
	path string
}

func (d *document) line() int {
	line, _ := d.InputPos()
	return line
}

// fail words what the XML reader says.
func (d *document) fail(err error) error {
	line := d.line()
	var syntax *xml.SyntaxError
	msg := err.Error()
	if errors.As(err, &syntax) {
		line, msg = syntax.Line, syntax.Msg
	} else if errors.Is(err, io.EOF) {
		msg = "the file ends before its last element does"
	}
	return fmt.Errorf("%s:%d: malformed XML: %s; a configuration file is <configuration>, in it <property><name>..</name><value>..</value></property>", d.path, line, msg)
}

func (p *parser) parse(path, text string) error {
	d := &document{Decoder: xml.NewDecoder(strings.NewReader(text)), path: path}
	d.CharsetReader = charset
	seen := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			if !seen {
				return fmt.Errorf("%s: malformed XML: there is no <configuration> element", path)
			}
			return nil
		}
		if err != nil {
			return d.fail(err)
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local != "configuration" {
			return fmt.Errorf("%s:%d: the outermost element is <%s>; it must be <configuration>", path, d.line(), start.Name.Local)
		}
		seen = true
		if err := p.configuration(d); err != nil {
			return err
		}
	}
}

// configuration reads up to the end of the element that has just begun.
func (p *parser) configuration(d *document) error {
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			switch {
			case t.Name.Local == "property":
				err = p.property(d, t)
			case t.Name.Local == "configuration":
				err = p.configuration(d)
			case t.Name.Local == "include" && t.Name.Space == xincludeSpace:
				err = p.include(d, t)
			default:
				p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: element <%s> is not known here and is ignored", d.path, d.line(), t.Name.Local))
				err = d.skip()
			}
			if err != nil {
				return err
			}
		}
	}
}

func (d *document) skip() error {
	if err := d.Skip(); err != nil {
		return d.fail(err)
	}
	return nil
}

// text reads the character data of the element that has just begun.
func (d *document) text() (string, error) {
	var b strings.Builder
	for {
		tok, err := d.Token()
		if err != nil {
			return "", d.fail(err)
		}
		switch t := tok.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.EndElement:
			return b.String(), nil
		case xml.StartElement:
			return "", fmt.Errorf("%s:%d: element <%s> inside a value; write < as &lt; if it is meant as text", d.path, d.line(), t.Name.Local)
		}
	}
}

// property reads <property>, whose parts may also be attributes.
func (p *parser) property(d *document, start xml.StartElement) error {
	prop := Property{File: d.path, Line: d.line()}
	hasValue := false
	set := func(part, v string) {
		switch part {
		case "name":
			prop.Name = strings.TrimSpace(v)
		case "value":
			prop.Value, hasValue = v, true
		case "final":
			prop.Final = strings.TrimSpace(v) == "true"
		}
	}
	for _, a := range start.Attr {
		set(a.Name.Local, a.Value)
	}
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			switch t.Name.Local {
			case "name", "value", "final":
				v, err := d.text()
				if err != nil {
					return err
				}
				set(t.Name.Local, v)
			case "description", "source", "tag":
				err = d.skip()
				if err != nil {
					return err
				}
			default:
				p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: element <%s> in a property is not known and is ignored", d.path, d.line(), t.Name.Local))
				if err := d.skip(); err != nil {
					return err
				}
			}
		case xml.EndElement:
			if prop.Name == "" {
				return fmt.Errorf("%s:%d: a property without a name; give it one or take it out", d.path, prop.Line)
			}
			if hasValue { // Hadoop ignores a property without a <value>
				p.props = append(p.props, prop)
			}
			return nil
		}
	}
}

// include follows an XInclude. Its fallback stands in where the file is missing.
func (p *parser) include(d *document, start xml.StartElement) error {
	href, line := "", d.line()
	for _, a := range start.Attr {
		if a.Name.Local == "href" {
			href = a.Value
		}
	}
	path, err := includePath(d.path, href)
	if err != nil {
		return fmt.Errorf("%s:%d: xi:include href=%q: %w", d.path, line, href, err)
	}
	missing := false
	if err := p.file(path); err != nil {
		if !os.IsNotExist(err) {
			return err
		}
		missing = true
	}
	fallback := false
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if t.Name.Local == "fallback" && t.Name.Space == xincludeSpace && missing {
				fallback = true
				if err := p.configuration(d); err != nil {
					return err
				}
				continue
			}
			if err := d.skip(); err != nil {
				return err
			}
		case xml.EndElement:
			if missing && !fallback {
				return fmt.Errorf("%s:%d: the included file %s is not there; create it, or give the include an xi:fallback", d.path, line, path)
			}
			return nil
		}
	}
}

func includePath(from, href string) (string, error) {
	u, err := url.Parse(href)
	switch {
	case err != nil:
		return "", err
	case href == "":
		return "", errors.New("there is no file name in it")
	case u.Scheme != "" && u.Scheme != "file":
		return "", fmt.Errorf("only files can be included, not %s:", u.Scheme)
	}
	if filepath.IsAbs(u.Path) {
		return filepath.Clean(u.Path), nil
	}
	return filepath.Join(filepath.Dir(from), u.Path), nil
}

// charset serves the two single-byte encodings that such files come in beside
// UTF-8.
func charset(name string, in io.Reader) (io.Reader, error) {
	switch strings.ToLower(name) {
	case "utf-8", "us-ascii", "ascii":
		return in, nil
	case "iso-8859-1", "latin1":
		data, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		runes := make([]rune, len(data))
		for i, b := range data {
			runes[i] = rune(b)
		}
		return strings.NewReader(string(runes)), nil
	}
	return nil, fmt.Errorf("the encoding %q is not supported; save the file as UTF-8", name)
}
