package diagnosis

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// nameNode answers as a NameNode of Hadoop 3.4.2 does; test/secured asks a real one.
type nameNode struct {
	role  string            // "" is active
	conf  map[string]string // in addition to what a healthy one has
	mean  float64           // of GenerateEDEKTime, in milliseconds
	old   bool              // it does not count EDEKs
	clock time.Duration     // ahead of ours
	fails map[string]int    // a page, and its HTTP status
}

// ServeHTTP answers /jmx and /conf.
func (n *nameNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", time.Now().Add(n.clock).UTC().Format(http.TimeFormat))
	if status := n.fails[r.URL.Path]; status != 0 {
		w.WriteHeader(status)
		return
	}
	type bean = map[string]any
	var answer any
	switch qry := r.URL.Query().Get("qry"); {
	case r.URL.Path == "/conf" && strings.Contains(r.Header.Get("Accept"), "json"):
		type property struct{ Key, Value string }
		conf := map[string]string{hdfsPath: hereURI, edekCache + "size": "500", edekCache + "low-watermark": "0.3f"}
		maps.Copy(conf, n.conf)
		var list []property
		for name, value := range conf {
			list = append(list, property{name, value})
		}
		answer = bean{"properties": list}
	case strings.HasSuffix(qry, "name=NameNodeStatus"):
		role := n.role
		if role == "" {
			role = "active"
		}
		answer = bean{"beans": []bean{{"name": qry, "State": role, "SecurityEnabled": true}}}
	case strings.HasSuffix(qry, "name=NameNodeInfo"):
		answer = bean{"beans": []bean{{"name": qry, "SoftwareVersion": "3.4.2"}}}
	case strings.HasSuffix(qry, "name=NameNodeActivity") && n.old:
		answer = bean{"beans": []bean{{"name": qry}}}
	case strings.HasSuffix(qry, "name=NameNodeActivity"):
		answer = bean{"beans": []bean{{"name": qry, "GenerateEDEKTimeNumOps": 12, "GenerateEDEKTimeAvgTime": n.mean,
			"WarmUpEDEKTimeNumOps": 1, "WarmUpEDEKTimeAvgTime": 7.5}}}
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// asks returns a provocation: HDFS has this server in its files, and these NameNodes.
func asks(list ...*nameNode) func(*lab) {
	return func(l *lab) {
		points(hdfsPath, hereURI)(l)
		for _, n := range list {
			web := httptest.NewServer(n)
			l.t.Cleanup(web.Close)
			l.o.NameNodes = append(l.o.NameNodes, web.URL)
		}
	}
}

// runs returns a provocation: the NameNode runs with another value.
func runs(name, value string) func(*lab) {
	return asks(&nameNode{conf: map[string]string{name: value}})
}

// nameNodeFailures are failures of running NameNodes.
var nameNodeFailures = []failure{
	{"no NameNode answers", "D-hdfs-namenode", false, func(l *lab) {
		asks()(l)
		l.o.NameNodes = []string{"http://127.0.0.1:1"}
	}},
	{"one of two answers, a standby", "D-hdfs-namenode", false, func(l *lab) {
		asks(&nameNode{role: "standby"})(l)
		l.o.NameNodes = append(l.o.NameNodes, "http://127.0.0.1:1")
	}},
	{"a NameNode with another time", "D-hdfs-namenode", false, asks(&nameNode{clock: -10 * time.Minute})},
	{"a NameNode that is a web server", "D-hdfs-namenode", false, func(l *lab) {
		asks()(l)
		web := httptest.NewServer(http.NotFoundHandler())
		l.t.Cleanup(web.Close)
		l.o.NameNodes = []string{web.URL}
	}},
	{"pages for administrators only", "D-hdfs-namenode", false, asks(&nameNode{fails: map[string]int{
		"/conf": http.StatusForbidden}})},
	{"no address of a NameNode", "D-hdfs-namenode", false, func(l *lab) { l.o.NameNodes = []string{"hdfs://nn:8020"} }},
	{"a NameNode without a KMS", "D-hdfs-running", false, runs(hdfsPath, "")},
	{"a NameNode that was not restarted", "D-hdfs-running", false, runs(hdfsPath, "kms://http@192.0.2.7:9600/kms")},
	{"a NameNode with a URI that cannot be read", "D-hdfs-running", false, runs(hdfsPath, "kms://nowhere")},
	{"a NameNode whose cache is too large", "D-hdfs-running", false, runs(edekCache+"size", "200000")},
	{"another cache in the files", "D-hdfs-running", false, func(l *lab) {
		asks(&nameNode{})(l)
		l.hdfs(hdfsPath, hereURI, edekCache+"size", "50")
	}},
	{"EDEKs that come late", "D-hdfs-edeks", false, asks(&nameNode{mean: 250})},
}

// TestNameNodeFailures provokes each finding about running NameNodes.
func TestNameNodeFailures(t *testing.T) { provokeAll(t, "namenodes.golden", nameNodeFailures) }

// TestHealthyNameNodes: an active and a standby NameNode that use this server have no warning. A NameNode of a Hadoop
// that does not count EDEKs is no fault.
func TestHealthyNameNodes(t *testing.T) {
	l := newLab(t)
	asks(&nameNode{mean: 0.5}, &nameNode{role: "standby", old: true})(l)
	text, err := l.check("D-hdfs-running", "D-hdfs-edeks")
	for _, want := range []string{"is active, Hadoop 3.4.2", "is standby, Hadoop 3.4.2", "clock agrees",
		"runs with " + hdfsPath + " " + hereURI, "EDEKs for new files: 12, 0.50 ms each; its cache was filled 1 times",
		"does not count EDEKs", "no failure, no warning"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: %q is not in\n%s", err, want, text)
		}
	}
}
