// Rules makes rules.txt. Its argument is a file of lines
// "mechanism TAB rules TAB name TAB name ...". Run it with the jars of Hadoop's
// client and -Djava.security.krb5.conf of a file whose default_realm is
// EXAMPLE.COM.
import org.apache.hadoop.security.authentication.util.KerberosName;
import java.nio.file.*;
import java.util.*;
public class Rules {
  public static void main(String[] a) throws Exception {
    for (String line : Files.readAllLines(Paths.get(a[0]))) {
      if (line.isEmpty() || line.startsWith("#")) { System.out.println(line); continue; }
      // mechanism TAB rules TAB principal principal...
      String[] p = line.split("\t");
      System.out.println(p[0] + "\t" + p[1]);
      try {
        KerberosName.setRuleMechanism(p[0]);
        KerberosName.setRules(p[1]);
      } catch (Exception e) {
        System.out.println("\t!start");
        continue;
      }
      for (int i = 2; i < p.length; i++) {
        String out;
        try { out = "=" + new KerberosName(p[i]).getShortName(); }
        catch (KerberosName.NoMatchingRule e) { out = "!norule " + e.getMessage(); }
        catch (IllegalArgumentException e) { out = "!illegal " + e.getMessage(); }
        catch (java.io.IOException e) { out = "!io " + e.getMessage(); }
        catch (RuntimeException e) { out = "!runtime " + e; }
        System.out.println("\t" + p[i] + "\t" + out);
      }
    }
  }
}
