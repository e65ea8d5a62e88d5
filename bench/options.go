package bench

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// Use and Short describe the command.
const (
	Use   = "kms URL..."
	Short = "Load one or several running KMSs, and compare them"
)

// Ways of authentication, and of connections.
const (
	authCookie = "cookie"
	authToken  = "token"
	// authKerberos sends a new ticket with each request, as clients without a cookie do, such as curl.
	authKerberos = "kerberos"

	connectKeep   = "keep"
	connectNew    = "new"
	connectResume = "resume"
)

// Options are the flags of the command.
type Options struct {
	Conf         string
	Loads        []string
	Connections  int
	Rate         float64
	Duration     time.Duration
	WarmUp       time.Duration
	Rounds       int
	Auth         string
	Connect      string
	Sweep        bool
	P99          time.Duration // 0 for no threshold
	MaxFailures  int           // that a measurement may have; negative for any number
	Key          string        // an existing key; "" makes one
	AllowedHosts []string      // other hosts than this machine that may be loaded
	HTML         string        // file; "" for none
	Quiet        bool
	Out          terminal.Output

	// Client has the options of the login. The command sets them.
	Client kmsclient.Options
}

// Define gives the command its flags.
func (o *Options) Define(cmd *cobra.Command) {
	o.Out.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Conf, "conf", "", "configuration folder: its ssl-client.xml names the truststore, and "+
		"claviger.client.kerberos.* the login (default: the system's roots and the tickets of kinit)")
	f.StringSliceVar(&o.Loads, "load", []string{loadDecrypt}, "loads, one after the other: "+strings.Join(loads, ", "))
	f.IntVar(&o.Connections, "connections", 16, "connections to the KMS")
	f.Float64Var(&o.Rate, "rate", 0, "requests a second that are due (default: as many as the connections can)")
	f.DurationVar(&o.Duration, "duration", 5*time.Second, "length of a round")
	f.DurationVar(&o.WarmUp, "warm-up", 2*time.Second, "length of a round before the first, repeated until the KMS "+
		"gets no faster; 0 for none")
	f.IntVar(&o.Rounds, "rounds", 3, "rounds of each load; the median is shown")
	f.StringVar(&o.Auth, "auth", authCookie, "cookie: log in once and use the cookie; token: use a delegation "+
		"token; kerberos: send a new ticket with each request")
	f.StringVar(&o.Connect, "connect", connectKeep, "keep: keep connections; new: a new connection for each request; "+
		"resume: the same, with resumption of TLS sessions")
	f.BoolVar(&o.Sweep, "sweep", false, "raise the number of connections from 1 to --connections, or the rate up to "+
		"--rate, and show where more load brings no more work")
	f.DurationVar(&o.P99, "p99", 0, "exit with status 3 if the 99th percentile of the latency is longer")
	f.IntVar(&o.MaxFailures, "max-failures", -1, "exit with status 3 if a round has more failed requests; -1 for any "+
		"number")
	f.StringVar(&o.Key, "key", "", "use this existing key, and make none; it should have two versions")
	f.StringSliceVar(&o.AllowedHosts, "i-mean-it", nil, "load this host, which is not this machine")
	f.StringVar(&o.HTML, "html", "", "write a report with plots to this new file")
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
}

// minDuration is a second, because processor time is counted in hundredths. Tests shorten it.
var minDuration = time.Second

var loads = []string{loadDecrypt, loadGenerate, loadBatch, loadMixed}

// Bounds of flags. A connection costs the KMS memory, and this process too.
const (
	maxConnections = 4096
	maxRounds      = 100
	maxDuration    = time.Hour
)

// check returns the KMSs to load, or an error of the command line.
func (o *Options) check(urls []string) (targets []*target, err error) {
	if err := o.checkFlags(); err != nil {
		return nil, &terminal.UsageError{Err: err}
	}
	for _, text := range urls {
		t, err := parseTarget(text)
		if err != nil {
			return nil, &terminal.UsageError{Err: err}
		}
		host, _, err := net.SplitHostPort(t.address)
		if err != nil {
			return nil, err
		}
		if !isLoopback(host) && !slices.Contains(o.AllowedHosts, host) {
			return nil, &terminal.UsageError{Err: fmt.Errorf("%s is not this machine, and a load takes a KMS from its "+
				"users; if you mean it, add --i-mean-it %[1]s", claviger.Printable(host))}
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func (o *Options) checkFlags() error {
	for _, l := range o.Loads {
		if !slices.Contains(loads, l) {
			return fmt.Errorf("--load: %q is not one of %s", l, strings.Join(loads, ", "))
		}
	}
	switch {
	case len(o.Loads) == 0:
		return errors.New("--load names no load")
	case o.Connections < 1 || o.Connections > maxConnections:
		return fmt.Errorf("--connections: %d is not between 1 and %d", o.Connections, maxConnections)
	case !(o.Rate >= 0 && o.Rate <= 1e6):
		return fmt.Errorf("--rate: %v is not between 0 and a million", o.Rate)
	case o.Duration < minDuration || o.Duration > maxDuration:
		return fmt.Errorf("--duration: %v is not between %v and %v", o.Duration, minDuration, maxDuration)
	case o.WarmUp < 0 || o.WarmUp > maxDuration:
		return fmt.Errorf("--warm-up: %v is not between 0 and %v", o.WarmUp, maxDuration)
	case o.Rounds < 1 || o.Rounds > maxRounds:
		return fmt.Errorf("--rounds: %d is not between 1 and %d", o.Rounds, maxRounds)
	case !slices.Contains([]string{authCookie, authToken, authKerberos}, o.Auth):
		return fmt.Errorf("--auth: %q is not %s, %s or %s", o.Auth, authCookie, authToken, authKerberos)
	case !slices.Contains([]string{connectKeep, connectNew, connectResume}, o.Connect):
		return fmt.Errorf("--connect: %q is not %s, %s or %s", o.Connect, connectKeep, connectNew, connectResume)
	case o.P99 < 0:
		return fmt.Errorf("--p99: %v is negative", o.P99)
	}
	return nil
}
