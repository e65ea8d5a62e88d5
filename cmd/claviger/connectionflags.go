package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"claviger/web"
)

// connectionFlags are the connection limits of a server that has no settings file.
type connectionFlags struct {
	total, perAddress int64
	unlimited         string
}

func (f *connectionFlags) define(cmd *cobra.Command) {
	cmd.Flags().Int64Var(&f.total, "max-connections", 1024,
		"highest number of connections; any more are closed at once")
	cmd.Flags().Int64Var(&f.perAddress, "max-connections-per-address", -1,
		"highest number of connections of one IPv4 address or one IPv6 /64 network; 0: no limit (default: half of "+
			"--max-connections)")
	cmd.Flags().StringVar(&f.unlimited, "unlimited-addresses", web.Loopback,
		"comma-separated addresses and networks without the limit per address")
	hideDefault(cmd, "max-connections-per-address")
}

// limits checks the flags and returns the limits.
func (f *connectionFlags) limits() (web.ConnectionLimits, error) {
	l := web.ConnectionLimits{Total: f.total, TotalName: "--max-connections",
		PerAddressName: "--max-connections-per-address", UnlimitedName: "--unlimited-addresses"}
	if f.total < 1 || f.total > 1<<20 {
		return l, &exitError{exitUsage, fmt.Errorf("%s %d: it must be from 1 to %d", l.TotalName, f.total, 1<<20)}
	}
	var err error
	if l.PerAddress, err = web.PerAddress(f.perAddress, f.perAddress != -1, f.total); err != nil {
		return l, &exitError{exitUsage, fmt.Errorf("%s %d: %w", l.PerAddressName, f.perAddress, err)}
	}
	if l.Unlimited, err = web.ParseAddresses(f.unlimited); err != nil {
		return l, &exitError{exitUsage, fmt.Errorf("%s: %w", l.UnlimitedName, err)}
	}
	return l, nil
}
