package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/terminal"
)

func newKeyHSMStart() *cobra.Command {
	c := keyhsmhost.Config{MetricsName: metricsListenName}
	var logs logFlags
	cmd := &cobra.Command{
		Use: "start --conf DIR", Short: "Serve in the foreground", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, _, err := logs.open()
			if err != nil {
				return err
			}
			c.Log = log
			return keyhsmhost.Run(cmd.Context(), c)
		},
	}
	keyHSMConf(cmd, &c.Folder)
	flags := cmd.Flags()
	flags.StringVar(&c.Listen, "listen", "",
		"address and port to use instead of keyhsm.listen; port 0 chooses a free one")
	flags.StringVar(&c.ReadyFile, "ready-file", "", readyFileHelp)
	flags.StringVar(&c.Metrics, "metrics-listen", "", metricsListenHelp)
	logs.define(cmd)
	return cmd
}

func newKeyHSMStatus() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "status --conf DIR", Short: "Show the state of the running server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			run, err := keyhsmhost.Running(conf)
			if err != nil {
				return noAnswer(err)
			}
			st, err := keyhsmhost.Status(cmd.Context(), &set, run)
			if err != nil {
				return noAnswer(err)
			}
			err = out.Write(struct {
				keyhsmhost.Process
				keyhsm.Status
			}{run, st}, func(w io.Writer) {
				row := func(name, format string, args ...any) {
					fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
				}
				row("state", "%s", st.State)
				if st.Detail != "" {
					row("because", "%s", st.Detail)
				}
				row("serves", "%s, process %d, since %s", run.URL, run.PID, st.Started.Format(time.RFC3339))
				row("token", "%s, serial %s, %s %s", st.Token, st.Serial, st.Manufacturer, st.Model)
				row("key", "%s, id %s", st.KeyLabel, st.KeyID)
				if st.KeyBits > 0 {
					row("wraps by", "RSA of %d bits, OAEP with %s", st.KeyBits, st.OAEP)
				}
				row("certificate", "good until %s", st.CertificateUntil.Format(time.DateOnly))
				row("trusted", "%d certificates, read at %s", st.Trusted, st.Loaded.Format(time.RFC3339))
				if st.LoadError != "" {
					row("not reloaded", "%s", st.LoadError)
				}
				row("since the start", "%d wrapped, %d unwrapped, %d refused", st.Wrapped, st.Unwrapped, st.Refused)
			})
			if err == nil && st.State != keyhsm.Ready {
				err = &exitError{code: exitRefused}
			}
			return err
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}

func newKeyHSMReload() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "reload --conf DIR", Args: cobra.NoArgs,
		Short: "Make the running server read its certificates again",
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			run, err := keyhsmhost.Running(conf)
			if err != nil {
				return err
			}
			st, err := keyhsmhost.Reload(cmd.Context(), &set, run)
			if err != nil {
				return err
			}
			return out.Write(st, func(w io.Writer) {
				fmt.Fprintf(w, "reloaded: %d certificates are trusted; the server's own is good until %s\n", st.Trusted,
					st.CertificateUntil.Format(time.DateOnly))
			})
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}
