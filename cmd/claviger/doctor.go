package main

import (
	"github.com/spf13/cobra"

	"claviger/doctor"
	ofKeyHSM "claviger/keyhsm/diagnosis"
	"claviger/kms/diagnosis"
	ofTrustee "claviger/trustee/diagnosis"
)

// doctorRoles are the services that doctor checks; the first is the default.
var doctorRoles = []doctor.Role{diagnosis.Role(), ofTrustee.Role(), ofKeyHSM.Role()}

func newDoctorCommand() *cobra.Command {
	var o doctor.Options
	cmd := &cobra.Command{Use: doctor.Use, Short: doctor.Short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return doctor.Run(cmd.Context(), &o, doctorRoles, cmd.ErrOrStderr())
		}}
	o.Define(cmd, doctorRoles)
	return cmd
}
