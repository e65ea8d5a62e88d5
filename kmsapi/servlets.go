package kmsapi

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
)

// Operations is what the servlets are made of that Hadoop's web server has for
// operators: /jmx, /conf, /stacks, /logLevel and /prom. Who asks is authenticated
// first, as for any other path. The zero value shows no property, and knows no
// administrators.
type Operations struct {
	// ProcessName and SessionID are those of the bean JvmMetrics:
	// hadoop.kms.metrics.process.name and .session.id. "" is KMS, and none.
	ProcessName, SessionID string
	// Port names the bean of the web server.
	Port int
	// Properties are those of /conf, with what is secret taken out.
	Properties func() ([]Property, error)
	// Level is that of the log; nil: /logLevel is not there.
	Level *slog.LevelVar
	// Administrator, if not nil, tells who may see what only administrators may
	// (hadoop.security.authorization with hadoop.kms.http.administrators); nil: anybody.
	Administrator func(claviger.Principal) bool
	// InstrumentationAdmin: /jmx, /conf and /stacks are only for them, too
	// (hadoop.security.instrumentation.requires.admin).
	InstrumentationAdmin bool
	// Prometheus serves /prom; nil: it is not there.
	Prometheus http.Handler
}

// Property is one property of /conf.
type Property struct {
	Name    string
	Written string // variables not expanded: Hadoop's XML has it so
	Value   string // expanded: Hadoop's JSON has it so
	Final   bool
	Source  string // where it was set
}

// servlet serves a path of the web server that is not below /kms.
type servlet func(c *call)

// servletOf finds it; nil is none.
func (a *api) servletOf(path string) (op string, s servlet) {
	switch path {
	case "/jmx", base + "/jmx":
		return "jmx", (*call).jmx
	case pathStatus:
		return "status", (*call).rangerStatus
	case pathJSON:
		return "metrics", (*call).rangerJSON
	case pathPrometheus:
		return "metrics", (*call).rangerPrometheus
	case "/conf":
		return "conf", (*call).conf
	case "/stacks":
		return "stacks", (*call).stacks
	case "/logLevel":
		if a.Operations.Level != nil {
			return "log_level", (*call).logLevel
		}
	case "/prom":
		if a.Operations.Prometheus != nil {
			return "prom", (*call).prometheus
		}
	}
	return "", nil
}

// administrator tells whether the caller may see what is for administrators, and
// answers him if not: HttpServer2.hasAdministratorAccess.
func (c *call) administrator() bool {
	may := c.Operations.Administrator
	if may == nil || c.caller.Name != "" && may(c.caller.Principal) {
		return true
	}
	c.Log.Warn("a page for administrators was asked for; hadoop.kms.http.administrators does not name the user", "user", c.caller.Name, "path", rawPath(c.r))
	c.page(http.StatusForbidden, "Unauthenticated users are not authorized to access this page.")
	return false
}

// instrumentation is HttpServer2.isInstrumentationAccessAllowed.
func (c *call) instrumentation() bool {
	return !c.Operations.InstrumentationAdmin || c.administrator()
}

// reads tells whether the method is one that the servlets have, and answers it
// if not.
func (c *call) reads() bool {
	switch c.r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodOptions:
		c.w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	default:
		c.w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		c.page(http.StatusMethodNotAllowed, "HTTP method "+c.r.Method+" is not supported by this URL")
	}
	return false
}

// conf is Hadoop's ConfServlet: the configuration as XML, or as JSON where the
// client asks for that; with name, one property.
func (c *call) conf() {
	if !c.reads() || !c.instrumentation() {
		return
	}
	asJSON := strings.Contains(c.r.Header.Get("Accept"), "application/json")
	contentType := "text/xml;charset=utf-8"
	if asJSON {
		contentType = "application/json;charset=utf-8"
	}
	var list []Property
	if c.Operations.Properties != nil {
		var err error
		if list, err = c.Operations.Properties(); err != nil {
			c.Log.Error("/conf shows nothing", "id", c.caller.RequestID, "err", err)
			c.page(http.StatusInternalServerError, "The configuration cannot be shown; the server's log says why")
			return
		}
	}
	name, one := c.param("name")
	if one = one && name != ""; one {
		if list = slices.DeleteFunc(list, func(p Property) bool { return p.Name != name }); len(list) == 0 {
			c.answer(http.StatusNotFound, contentType, nil)
			return
		}
	}
	if asJSON {
		c.answer(http.StatusOK, contentType, confJSON(list, one))
		return
	}
	c.answer(http.StatusOK, contentType, confXML(list))
}

// confXML is Configuration.writeXml.
func confXML(list []Property) []byte {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8" standalone="no"?><configuration>` + "\n")
	element := func(name, text string) {
		b.WriteString("<" + name + ">")
		_ = xml.EscapeText(&b, []byte(text)) // a bytes.Buffer takes all
		b.WriteString("</" + name + ">")
	}
	for _, p := range list {
		b.WriteString("<property>")
		element("name", p.Name)
		element("value", p.Written)
		element("final", fmt.Sprint(p.Final))
		element("source", p.Source)
		b.WriteString("</property>\n")
	}
	b.WriteString("</configuration>\n")
	return b.Bytes()
}

// confJSON is Configuration.dumpConfiguration.
func confJSON(list []Property, one bool) []byte {
	type property struct {
		Key      string `json:"key"`
		Value    string `json:"value"`
		IsFinal  bool   `json:"isFinal"`
		Resource string `json:"resource"`
	}
	all := make([]property, len(list))
	for i, p := range list {
		all[i] = property{p.Name, p.Value, p.Final, p.Source}
	}
	var shown any = map[string]any{"properties": all}
	if one {
		shown = map[string]any{"property": all[0]}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(shown) // strings and booleans always encode
	return b.Bytes()
}

const (
	// maxStacks bounds the dump of /stacks, in bytes, and stackOfOne is about what a
	// goroutine takes of it.
	maxStacks  = 8 << 20
	stackOfOne = 2 << 10
	// Nothing else runs while a dump is made, so each is shown for at least dumpShown,
	// and for dumpRest times as long as it took.
	dumpShown = time.Second
	dumpRest  = 50
)

// stackDump makes the dumps of /stacks, one at a time. Who asks meanwhile, or soon
// after, gets the same one.
type stackDump struct {
	mu    sync.Mutex
	shown []byte
	until time.Time
}

func (d *stackDump) get() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().Before(d.until) {
		return d.shown
	}
	const more = 64 << 10 // for goroutines that begin meanwhile
	buffer := make([]byte, min(maxStacks, runtime.NumGoroutine()*stackOfOne+more))
	began := time.Now()
	n := runtime.Stack(buffer, true)
	d.shown = threadDump(buffer[:n])
	took := time.Since(began)
	d.until = time.Now().Add(max(dumpShown, dumpRest*took))
	return d.shown
}

// stacks is Hadoop's StackServlet, of goroutines.
func (c *call) stacks() {
	if !c.reads() || !c.instrumentation() {
		return
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", c.dump.get())
}

// threadDump brings the runtime's dump into the form of Hadoop's
// ReflectionUtils.printThreadInfo, which tools that collect stacks know.
// Arguments of calls are left out: a word of them may be of a key.
func threadDump(dump []byte) []byte {
	goroutines := bytes.Split(bytes.TrimSpace(dump), []byte("\n\n"))
	var b bytes.Buffer
	fmt.Fprintf(&b, "Process Thread Dump: \n%d active threads\n", len(goroutines))
	for _, g := range goroutines {
		lines := strings.Split(string(g), "\n")
		// goroutine 12 [IO wait, 3 minutes]:
		id, state, _ := strings.Cut(strings.TrimPrefix(lines[0], "goroutine "), " ")
		var frames []string
		for i := 1; i+1 < len(lines); i += 2 {
			call, place := lines[i], strings.TrimSpace(lines[i+1])
			if j := strings.LastIndexByte(call, '('); j > 0 && !strings.HasPrefix(call, "created by ") {
				call = call[:j]
			}
			place, _, _ = strings.Cut(place, " +0x")
			frames = append(frames, call+" ("+place+")")
		}
		name := "goroutine"
		if len(frames) > 0 {
			name, _, _ = strings.Cut(strings.TrimPrefix(frames[len(frames)-1], "created by "), " ")
		}
		fmt.Fprintf(&b, "Thread %s (%s):\n  State: %s\n  Stack:\n", id, name, strings.Trim(state, "[]:"))
		for _, f := range frames {
			b.WriteString("    " + f + "\n")
		}
	}
	return b.Bytes()
}

// logLevel is Hadoop's LogLevel.Servlet, as `hadoop daemonlog` uses it. There is
// one log here, whatever class is named.
func (c *call) logLevel() {
	if !c.reads() || !c.administrator() {
		return
	}
	var b strings.Builder
	b.WriteString("<html>\n<link rel='stylesheet' type='text/css' href='/static/hadoop.css'>\n<title>Log Level</title>\n<body>\n<h1>Log Level</h1>\n\n")
	if class, ok := c.param("log"); ok && class != "" {
		b.WriteString("<br /><hr /><h3>Results</h3>\n")
		output := func(label, value string) {
			b.WriteString("<!-- OUTPUT -->" + label + ": <b>" + escape(value) + "</b><br />\n")
		}
		output("Submitted Class Name", class)
		output("Log Class", "log/slog.Logger")
		if level, ok := c.param("level"); ok && level != "" {
			output("Submitted Level", level)
			if l, ok := levelNamed(level); ok {
				was := c.Operations.Level.Level()
				c.Operations.Level.Set(min(was, l, slog.LevelWarn)) // so that neither hides the next line
				c.Log.Warn("the log's level is changed", "user", c.caller.Name, "remote", c.caller.RemoteAddr, "from", was, "to", l)
				c.Operations.Level.Set(l)
				b.WriteString("<!-- OUTPUT -->Setting Level to " + levelName(l) + " ...<br />\n")
			} else {
				output("Bad Level ", level)
			}
		}
		output("Effective Level", levelName(c.Operations.Level.Level()))
		b.WriteByte('\n')
	}
	b.WriteString("<br /><hr /><h3>Get / Set</h3>\n" +
		"<form>Class Name: <input type='text' size='50' name='log' /> <input type='submit' value='Get Log Level' /></form>\n" +
		"<form>Class Name: <input type='text' size='50' name='log' /> Level: <input type='text' name='level' /> <input type='submit' value='Set Log Level' /></form>\n" +
		"<hr />\n<a href='http://hadoop.apache.org'>Hadoop</a>, " + time.Now().Format("2006") + ".\n</body></html>\n")
	c.answer(http.StatusOK, "text/html;charset=utf-8", []byte(b.String()))
}

// levels are log4j's, by slog's four.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"DEBUG", slog.LevelDebug}, {"INFO", slog.LevelInfo}, {"WARN", slog.LevelWarn}, {"ERROR", slog.LevelError},
	{"ALL", slog.LevelDebug}, {"TRACE", slog.LevelDebug}, {"FATAL", slog.LevelError}, // not OFF: errors are always told
}

func levelNamed(name string) (slog.Level, bool) {
	for _, l := range levels {
		if strings.EqualFold(l.name, name) {
			return l.level, true
		}
	}
	return 0, false
}

func levelName(l slog.Level) string {
	for _, known := range levels {
		if known.level == l {
			return known.name
		}
	}
	return l.String()
}

// prometheus serves /prom, which asks for credentials as Hadoop's does.
func (c *call) prometheus() {
	if !c.reads() {
		return
	}
	c.status = http.StatusOK
	c.Operations.Prometheus.ServeHTTP(c.w, c.r)
}
